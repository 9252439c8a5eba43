// One IPluginV3 for all operators: TensorRT's questions, answered from an operator's form.
// Must not know which operator it holds.
#pragma once

#include "operator.h"
#include "reporter.h"

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace longllava
{

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime
{
public:
    Plugin(std::shared_ptr<Operator const> op, std::vector<FieldValue> fields);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // IPluginV3OneCore
    char const* getPluginName() const noexcept override;
    char const* getPluginVersion() const noexcept override;
    char const* getPluginNamespace() const noexcept override;

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t numOutputs,
        nvinfer1::DataType const* inputs, int32_t numInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t numInputs,
        nvinfer1::DimsExprs const* shapeInputs, int32_t numShapeInputs,
        nvinfer1::DimsExprs* outputs, int32_t numOutputs,
        nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position,
        nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t numInputs,
        int32_t numOutputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t numInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t numOutputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t numInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs,
        int32_t numOutputs) const noexcept override;
    char const* getMetadataString() noexcept override;

    // IPluginV3OneRuntime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t numInputs,
        nvinfer1::PluginTensorDesc const* outputs, int32_t numOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDescs,
        nvinfer1::PluginTensorDesc const* outputDescs, void const* const* inputs,
        void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    //! Report what a function returns as a Status; out of memory must not cross into TensorRT.
    template <typename Function>
    int32_t guarded(Function function) const noexcept;

    std::shared_ptr<Operator const> mOperator;
    std::vector<FieldValue> mFields;
    std::vector<nvinfer1::PluginField> mSerialised;
    nvinfer1::PluginFieldCollection mCollection{};
};

} // namespace longllava
