// Finds the driver's functions in libcuda.so.1. See cuda_driver.h.
#include "cuda_driver.h"

#include <atomic>
#include <dlfcn.h>
#include <mutex>

namespace longllava
{

namespace
{

template <typename Function>
bool find(void* library, char const* name, Function& function)
{
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

//! Return the name of the first function that is missing, or null.
char const* findAll(void* library, CudaDriver& driver)
{
    find(library, "cuCtxGetId", driver.contextGetId);
    char const* missing = nullptr;
    auto const need = [&](char const* name, auto& function) {
        if (!find(library, name, function) && missing == nullptr)
        {
            missing = name;
        }
    };
    need("cuInit", driver.init);
    need("cuCtxGetCurrent", driver.contextGetCurrent);
    need("cuCtxGetDevice", driver.contextGetDevice);
    need("cuDeviceGetAttribute", driver.deviceGetAttribute);
    need("cuModuleLoadDataEx", driver.moduleLoadDataEx);
    need("cuModuleGetFunction", driver.moduleGetFunction);
    need("cuFuncSetAttribute", driver.functionSetAttribute);
    need("cuLaunchKernel", driver.launchKernel);
    need("cuGetErrorName", driver.getErrorName);
    return missing;
}

} // namespace

Status CudaDriver::check(CudaResult result, char const* call) const
{
    if (result == 0)
    {
        return {};
    }
    char const* name = nullptr;
    if (getErrorName(result, &name) != 0 || name == nullptr)
    {
        name = "an error without a name";
    }
    return Status::failure(call, ": the CUDA driver returned ", name, " (", result, ")");
}

Status openCudaDriver(CudaDriver const*& driver)
{
    static CudaDriver opened{};
    static std::atomic<bool> isOpen{false};
    static std::mutex mutex;
    driver = &opened;
    if (isOpen.load(std::memory_order_acquire))
    {
        return {};
    }
    std::lock_guard<std::mutex> const lock{mutex};
    if (isOpen.load(std::memory_order_relaxed))
    {
        return {};
    }
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr)
    {
        return Status::failure("CUDA driver: expected libcuda.so.1, got: ", dlerror(),
            "; engines can be built here, but run only where NVIDIA's driver is installed");
    }
    if (char const* const missing = findAll(library, opened))
    {
        return Status::failure(
            "CUDA driver: libcuda.so.1 has no ", missing, "; install a newer driver");
    }
    if (Status status = opened.check(opened.init(0), "cuInit"); !status.ok())
    {
        return status;
    }
    isOpen.store(true, std::memory_order_release);
    return {};
}

} // namespace longllava
