// Chooses and loads kernel images; one module a kernel, once a context. See kernel_table.h.
#include "kernel_table.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <mutex>
#include <vector>

namespace longllava
{

namespace
{

struct ByName
{
    bool operator()(KernelImage const& image, char const* name) const
    {
        return std::strcmp(image.name, name) < 0;
    }
    bool operator()(char const* name, KernelImage const& image) const
    {
        return std::strcmp(name, image.name) < 0;
    }
};

auto imagesOf(char const* name)
{
    return std::equal_range(kKernelImages, kKernelImages + kNumKernelImages, name, ByName{});
}

//! What one CUDA context has loaded. Its modules end with it, so nothing is ever unloaded here.
struct ContextModules
{
    CudaContext context;
    //! Never given twice in a process, unlike the address of a context.
    unsigned long long id;
    int32_t arch;
    int64_t multiprocessors;
    //! Of every image, null until it is loaded.
    std::vector<CudaFunction> functions;
};

//! Held while a context's modules are looked at.
std::mutex gMutex;

Status currentModules(CudaDriver const& driver, ContextModules*& modules)
{
    static std::list<ContextModules> known;
    CudaContext context{};
    unsigned long long id{};
    Status status = driver.check(driver.contextGetCurrent(&context), "cuCtxGetCurrent");
    if (status.ok() && context == nullptr)
    {
        return Status::failure("CUDA driver: this thread has no current context; make the "
                               "engine's device current before it is enqueued");
    }
    if (status.ok() && driver.contextGetId != nullptr)
    {
        status = driver.check(driver.contextGetId(context, &id), "cuCtxGetId");
    }
    if (!status.ok())
    {
        return status;
    }
    for (ContextModules& each : known)
    {
        if (each.context == context && each.id == id)
        {
            modules = &each;
            return {};
        }
    }
    int device{};
    status = driver.check(driver.contextGetDevice(&device), "cuCtxGetDevice");
    // major and minor number of the compute capability, multiprocessors
    std::array<int, 3> numbers{};
    constexpr std::array<int, 3> kAttributes{kAttributeComputeCapabilityMajor,
        kAttributeComputeCapabilityMinor, kAttributeMultiprocessorCount};
    for (size_t i = 0; status.ok() && i < numbers.size(); ++i)
    {
        status = driver.check(driver.deviceGetAttribute(&numbers[i], kAttributes[i], device),
            "cuDeviceGetAttribute");
    }
    if (status.ok())
    {
        std::vector<CudaFunction> functions(kNumKernelImages);
        int32_t const arch = 10 * numbers[0] + numbers[1];
        known.push_back({context, id, arch, numbers[2], std::move(functions)});
        modules = &known.back();
    }
    return status;
}

Status loadImage(CudaDriver const& driver, ImageChoice choice, CudaFunction& function)
{
    std::array<char, 1024> log{};
    int options[] = {kJitErrorLog, kJitErrorLogBytes};
    void* values[] = {log.data(), reinterpret_cast<void*>(log.size() - 1)};
    KernelImage const& image = *choice.image;
    CudaModule module{};
    Status status = driver.check(
        driver.moduleLoadDataEx(&module, choice.code, 2, options, values), "cuModuleLoadDataEx");
    if (status.ok())
    {
        status = driver.check(
            driver.moduleGetFunction(&function, module, image.symbol), "cuModuleGetFunction");
    }
    if (status.ok())
    {
        status = driver.check(driver.functionSetAttribute(function, kFunctionMaxDynamicSharedBytes,
                                  static_cast<int>(image.sharedBytes)),
            "cuFuncSetAttribute");
    }
    if (!status.ok())
    {
        return Status::failure("kernel '", image.name, "' for sm_", image.arch, ", ",
            image.sharedBytes, " bytes of shared memory: ", status.message(),
            log[0] != '\0' ? "; " : "", log.data(),
            "; build the library for this GPU, or install a newer driver");
    }
    return {};
}

Status noImage(char const* name, int32_t arch)
{
    std::ostringstream held;
    auto const [begin, end] = imagesOf(name);
    for (KernelImage const* image = begin; image != end; ++image)
    {
        held << " sm_" << image->arch;
    }
    if (begin == end)
    {
        return Status::failure("kernel '", name, "': this library was built without it; build it "
            "with this dtype and weight format");
    }
    return Status::failure("kernel '", name, "': this GPU is sm_", arch, ", the library holds",
        held.str(), "; build it for this GPU, which must be sm_80 or newer");
}

} // namespace

bool hasKernel(char const* name) noexcept
{
    auto const [begin, end] = imagesOf(name);
    return begin != end;
}

ImageChoice chooseImage(char const* name, int32_t arch) noexcept
{
    ImageChoice binary{};
    ImageChoice text{};
    auto const [begin, end] = imagesOf(name);
    for (KernelImage const* image = begin; image != end && image->arch <= arch; ++image)
    {
        bool const isSameMajor = image->arch / 10 == arch / 10;
        if (image->arch == arch || (isSameMajor && !image->isArchSpecific))
        {
            binary = {image, image->cubin};
        }
        if (image->ptx != nullptr)
        {
            text = {image, image->ptx};
        }
    }
    return binary.image != nullptr ? binary : text;
}

Status countMultiprocessors(CudaDriver const& driver, int64_t& count)
{
    std::lock_guard<std::mutex> const lock{gMutex};
    ContextModules* modules{};
    Status status = currentModules(driver, modules);
    count = status.ok() ? modules->multiprocessors : 0;
    return status;
}

Status loadKernel(CudaDriver const& driver, char const* name, Kernel& kernel)
{
    std::lock_guard<std::mutex> const lock{gMutex};
    ContextModules* modules{};
    if (Status status = currentModules(driver, modules); !status.ok())
    {
        return status;
    }
    ImageChoice const choice = chooseImage(name, modules->arch);
    if (choice.image == nullptr)
    {
        return noImage(name, modules->arch);
    }
    CudaFunction& function = modules->functions[choice.image - kKernelImages];
    if (function == nullptr)
    {
        CudaFunction loaded{};
        if (Status status = loadImage(driver, choice, loaded); !status.ok())
        {
            return status;
        }
        function = loaded;
    }
    kernel = {function, choice.image->threads, choice.image->sharedBytes};
    return {};
}

} // namespace longllava
