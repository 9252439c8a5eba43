// Answers TensorRT from an operator's form. See plugin.h.
#include "plugin.h"

#include "descriptions.h"
#include "execution.h"

#include <algorithm>
#include <new>

namespace longllava
{

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace
{

//! Every output axis is some input's axis, so no shape has to be computed.
nvinfer1::IDimensionExpr const* findAxis(
    Form const& form, Axis const& wanted, nvinfer1::DimsExprs const* inputs) noexcept
{
    for (int32_t i = 0; i < form.numInputs; ++i)
    {
        Value const& value = form.values[i];
        for (int32_t axis = 0; axis < value.rank; ++axis)
        {
            if (value.axes[axis] == wanted)
            {
                return inputs[i].d[axis];
            }
        }
    }
    return nullptr;
}

PluginField serialise(FieldValue const& field) noexcept
{
    char const* const name = field.name.c_str();
    switch (field.kind)
    {
    case FieldKind::kInteger: return {name, &field.number, PluginFieldType::kINT32, 1};
    case FieldKind::kReal: return {name, &field.real, PluginFieldType::kFLOAT32, 1};
    case FieldKind::kText: break;
    }
    return {name, field.text.c_str(), PluginFieldType::kCHAR,
        static_cast<int32_t>(field.text.size())};
}

} // namespace

Plugin::Plugin(std::shared_ptr<Operator const> op, std::vector<FieldValue> fields)
    : mOperator{std::move(op)}
    , mFields{std::move(fields)}
{
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept
{
    switch (type)
    {
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept
{
    try
    {
        return new Plugin{mOperator, mFields};
    }
    catch (std::exception const&)
    {
        return nullptr;
    }
}

char const* Plugin::getPluginName() const noexcept
{
    return mOperator->form().opType;
}

char const* Plugin::getPluginVersion() const noexcept
{
    return kPluginVersion;
}

char const* Plugin::getPluginNamespace() const noexcept
{
    return "";
}

int32_t Plugin::getNbOutputs() const noexcept
{
    return mOperator->form().numOutputs;
}

int32_t Plugin::getOutputDataTypes(
    DataType* outputs, int32_t, DataType const* inputs, int32_t numInputs) const noexcept
{
    Form const& form = mOperator->form();
    for (int32_t i = 0; i < form.numOutputs; ++i)
    {
        bool const isFloat32 = form.values[form.numInputs + i].type == ValueType::kFloat32;
        outputs[i] = isFloat32 ? DataType::kFLOAT : inputs[0];
    }
    return guarded([&] {
        auto const shapes = collect(inputs, numInputs, inputs, 0,
            [](DataType type) { return TensorShape{elementType(type), 0, {}}; });
        return matchTypes(form, shapes.data(), numInputs);
    });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t numInputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t,
    nvinfer1::IExprBuilder&) noexcept
{
    Form const& form = mOperator->form();
    int32_t const status = guarded([&] {
        auto const shapes = collect(inputs, numInputs, inputs, 0,
            [](nvinfer1::DimsExprs const& dims) { return tensorShape(dims); });
        Sizes sizes;
        return checkShapes(*mOperator, shapes.data(), numInputs, sizes);
    });
    for (int32_t i = 0; status == 0 && i < form.numOutputs; ++i)
    {
        Value const& value = form.values[form.numInputs + i];
        outputs[i].nbDims = value.rank;
        for (int32_t axis = 0; axis < value.rank; ++axis)
        {
            outputs[i].d[axis] = findAxis(form, value.axes[axis], inputs);
        }
    }
    return status;
}

bool Plugin::supportsFormatCombination(int32_t position,
    nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept
{
    nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR
        && accepts(mOperator->form().values[position].type, elementType(tensor.type),
            elementType(tensors[0].desc.type));
}

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs,
    int32_t numInputs, nvinfer1::DynamicPluginTensorDesc const* outputs,
    int32_t numOutputs) noexcept
{
    return guarded([&] {
        Status status;
        for (auto const& bound : {smallest, largest})
        {
            auto const shapes = collect(inputs, numInputs, outputs, numOutputs, bound);
            Sizes sizes;
            status = matchTypes(mOperator->form(), shapes.data(), numInputs + numOutputs);
            if (status.ok())
            {
                status = checkShapes(*mOperator, shapes.data(), numInputs, sizes);
            }
            if (status.ok())
            {
                status = checkKernels(*mOperator, shapes[0].type, sizes);
            }
            if (!status.ok())
            {
                break;
            }
        }
        return status;
    });
}

size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs,
    int32_t numInputs, nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept
{
    size_t bytes = 0;
    static_cast<void>(guarded([&] {
        auto const shapes = collect(inputs, numInputs, inputs, 0, largest);
        Sizes sizes;
        Status status = checkShapes(*mOperator, shapes.data(), numInputs, sizes);
        bytes = status.ok() ? mOperator->workspaceBytes(shapes[0].type, sizes) : 0;
        return status;
    }));
    return bytes;
}

char const* Plugin::getMetadataString() noexcept
{
    return kLibraryVersion;
}

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t numInputs,
    nvinfer1::PluginTensorDesc const* outputs, int32_t numOutputs) noexcept
{
    return guarded([&] {
        auto const shapes = collect(inputs, numInputs, outputs, numOutputs, exact);
        Sizes sizes;
        Status status = checkShapes(*mOperator, shapes.data(), numInputs, sizes);
        // here rather than in enqueue, because loading allocates and a stream may be captured there
        return status.ok() ? preload(*mOperator, shapes[0].type, sizes) : status;
    });
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const* inputDescs,
    nvinfer1::PluginTensorDesc const* outputDescs, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept
{
    return guarded([&] {
        Form const& form = mOperator->form();
        std::array<TensorShape, kMaxTensors> shapes{};
        std::transform(inputDescs, inputDescs + form.numInputs, shapes.begin(), exact);
        std::transform(
            outputDescs, outputDescs + form.numOutputs, shapes.begin() + form.numInputs, exact);
        return longllava::enqueue(
            *mOperator, shapes.data(), inputs, outputs, workspace, stream);
    });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept
{
    return clone();
}

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept
{
    mSerialised.clear();
    for (FieldValue const& field : mFields)
    {
        mSerialised.push_back(serialise(field));
    }
    mCollection = {static_cast<int32_t>(mSerialised.size()), mSerialised.data()};
    return &mCollection;
}

template <typename Function>
int32_t Plugin::guarded(Function function) const noexcept
{
    try
    {
        return report(function());
    }
    catch (std::exception const&)
    {
        return -1;
    }
}

} // namespace longllava
