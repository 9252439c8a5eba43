// Executes launches through the CUDA driver. See launch.h.
#include "launch.h"

#include "cuda_driver.h"
#include "kernel_table.h"

#include <cstdarg>
#include <cstdio>

namespace longllava
{

namespace
{

constexpr int64_t kMaxGrid[] = {INT32_MAX, 65535, 65535};

Status checkLaunch(Launch const& launch)
{
    for (size_t axis = 0; axis < launch.grid.size(); ++axis)
    {
        if (launch.grid[axis] < 1 || launch.grid[axis] > kMaxGrid[axis])
        {
            return Status::failure("kernel '", launch.kernel.data(), "': axis ", axis,
                " of its grid must be 1 to ", kMaxGrid[axis], ", got ", launch.grid[axis],
                "; run fewer sequences or tokens at once");
        }
    }
    if (!launch.arguments.fit())
    {
        return Status::failure("kernel '", launch.kernel.data(),
            "': a size or stride exceeds 31 bits; run fewer tokens at once");
    }
    return {};
}

Status launchOne(CudaDriver const& driver, Launch const& launch, CUstream_st* stream)
{
    Kernel kernel{};
    Status status = checkLaunch(launch);
    if (status.ok())
    {
        status = loadKernel(driver, launch.kernel.data(), kernel);
    }
    if (!status.ok())
    {
        return status;
    }
    std::array<void*, Arguments::kCapacity> addresses{};
    for (size_t i = 0; i < addresses.size(); ++i)
    {
        // the driver only reads them
        addresses[i] = const_cast<uint64_t*>(launch.arguments.slots() + i);
    }
    auto const [x, y, z] = launch.grid;
    status = driver.check(
        driver.launchKernel(kernel.function, static_cast<unsigned>(x), static_cast<unsigned>(y),
            static_cast<unsigned>(z), kernel.threads, 1, 1, kernel.sharedBytes, stream,
            addresses.data(), nullptr),
        "cuLaunchKernel");
    if (!status.ok())
    {
        return Status::failure("kernel '", launch.kernel.data(), "': ", status.message());
    }
    return {};
}

} // namespace

KernelName kernelName(char const* format, ...) noexcept
{
    KernelName name{};
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(name.data(), name.size(), format, arguments);
    va_end(arguments);
    return name;
}

Status run(Plan const& plan, CUstream_st* stream)
{
    CudaDriver const* driver{};
    Status status = openCudaDriver(driver);
    for (Launch const& launch : plan)
    {
        if (!status.ok())
        {
            break;
        }
        status = launchOne(*driver, launch, stream);
    }
    return status;
}

} // namespace longllava
