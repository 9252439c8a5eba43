// Checks addresses and executes plans. See execution.h.
#include "execution.h"

#include "cuda_driver.h"
#include "kernel_table.h"

namespace longllava
{

namespace
{

//! Every kernel loads 16 bytes at once.
constexpr uintptr_t kAlignment = 16;

uintptr_t address(void const* pointer) noexcept
{
    return reinterpret_cast<uintptr_t>(pointer);
}

int64_t bytes(TensorShape const& shape) noexcept
{
    bool const isByte = shape.type == ElementType::kInt8 || shape.type == ElementType::kUInt8;
    int64_t total = isByte ? 1 : shape.type == ElementType::kInt32 ? 4 : itemSize(shape.type);
    for (int32_t axis = 0; axis < shape.rank; ++axis)
    {
        total *= shape.dims[axis];
    }
    return total;
}

Status checkAddress(Form const& form, char const* name, void const* pointer)
{
    if (pointer == nullptr || address(pointer) % kAlignment != 0)
    {
        return Status::failure(form.opType, ": the address of '", name,
            "' must be a multiple of 16 and not null, got ", pointer,
            "; bind memory as cudaMalloc returns it");
    }
    return {};
}

Status checkOverlap(Operator const& op, Sizes const& sizes, TensorShape const* shapes,
    void const* const* inputs, void* const* outputs)
{
    Form const& form = op.form();
    for (int32_t output = 0; output < form.numOutputs; ++output)
    {
        int32_t const place = form.numInputs + output;
        uintptr_t const begin = address(outputs[output]);
        uintptr_t const end = begin + static_cast<uintptr_t>(bytes(shapes[place]));
        for (int32_t input = 0; input < form.numInputs; ++input)
        {
            uintptr_t const other = address(inputs[input]);
            bool const isApart
                = end <= other || other + static_cast<uintptr_t>(bytes(shapes[input])) <= begin;
            if (!isApart && !(begin == other && op.mayAlias(sizes, input, output)))
            {
                return Status::failure(form.opType, ": output '", form.values[place].name,
                    "' must not lie in the memory of input '", form.values[input].name,
                    "'; bind two buffers and swap them");
            }
        }
    }
    return {};
}

Status checkAddresses(Operator const& op, Call const& call, TensorShape const* shapes)
{
    Form const& form = op.form();
    Status status;
    for (int32_t i = 0; status.ok() && i < form.numInputs + form.numOutputs; ++i)
    {
        bool const isInput = i < form.numInputs;
        status = checkAddress(form, form.values[i].name,
            isInput ? call.inputs[i] : call.outputs[i - form.numInputs]);
    }
    if (status.ok() && op.workspaceBytes(call.type, call.sizes) > 0)
    {
        status = checkAddress(form, "workspace", call.workspace);
    }
    return status.ok() ? checkOverlap(op, call.sizes, shapes, call.inputs, call.outputs) : status;
}

//! Every launch of every path; what a launch points to is not there.
template <typename Action>
Status forEveryKernel(Operator const& op, ElementType type, Sizes const& sizes, Action action)
{
    std::array<void const*, kMaxTensors> const inputs{};
    std::array<void*, kMaxTensors> const outputs{};
    for (Sizes const& path : op.everyPath(sizes))
    {
        Call const call{type, path, inputs.data(), outputs.data(), nullptr, 1};
        for (Launch const& launch : op.plan(call))
        {
            if (Status status = action(launch.kernel.data()); !status.ok())
            {
                return status;
            }
        }
    }
    return {};
}

} // namespace

Status checkShapes(Operator const& op, TensorShape const* shapes, int32_t count, Sizes& sizes)
{
    Status status = matchDims(op.form(), shapes, count, sizes);
    return status.ok() ? op.checkSizes(sizes) : status;
}

Status checkKernels(Operator const& op, ElementType type, Sizes const& sizes)
{
    return forEveryKernel(op, type, sizes, [&op](char const* kernel) {
        return hasKernel(kernel) ? Status{}
                                 : Status::failure(op.form().opType, ": kernel '", kernel,
                                     "' is not in this library; build it with this dtype and "
                                     "weight format");
    });
}

Status preload(Operator const& op, ElementType type, Sizes const& sizes)
{
    CudaDriver const* driver{};
    if (Status status = openCudaDriver(driver); !status.ok())
    {
        return status;
    }
    return forEveryKernel(op, type, sizes, [driver](char const* name) {
        Kernel kernel{};
        return loadKernel(*driver, name, kernel);
    });
}

Status enqueue(Operator const& op, TensorShape const* shapes, void const* const* inputs,
    void* const* outputs, void* workspace, CUstream_st* stream)
{
    Form const& form = op.form();
    Call call{shapes[0].type, {}, inputs, outputs, workspace, 0};
    int32_t const count = form.numInputs + form.numOutputs;
    Status status = matchTypes(form, shapes, count);
    if (status.ok())
    {
        status = checkShapes(op, shapes, count, call.sizes);
    }
    if (status.ok())
    {
        status = checkAddresses(op, call, shapes);
    }
    CudaDriver const* driver{};
    if (status.ok())
    {
        status = openCudaDriver(driver);
    }
    if (status.ok())
    {
        status = countMultiprocessors(*driver, call.multiprocessors);
    }
    return status.ok() ? run(op.plan(call), stream) : status;
}

} // namespace longllava
