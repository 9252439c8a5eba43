// TensorRT's descriptions of tensors, as shapes that operators understand.
// Must not know plugins.
#pragma once

#include "form.h"

#include <NvInferRuntime.h>

#include <algorithm>
#include <vector>

namespace longllava
{

ElementType elementType(nvinfer1::DataType type) noexcept;

//! Dimensions that depend on the input are `kUnknown`.
TensorShape tensorShape(nvinfer1::DimsExprs const& dims) noexcept;

//! The lower and the upper bound of a profile.
TensorShape smallest(nvinfer1::DynamicPluginTensorDesc const& tensor) noexcept;
TensorShape largest(nvinfer1::DynamicPluginTensorDesc const& tensor) noexcept;

TensorShape exact(nvinfer1::PluginTensorDesc const& tensor) noexcept;

//! The inputs, then the outputs, as `shapeOf` sees each.
template <typename Description, typename ShapeOf>
std::vector<TensorShape> collect(Description const* inputs, int32_t numInputs,
    Description const* outputs, int32_t numOutputs, ShapeOf shapeOf)
{
    std::vector<TensorShape> shapes(numInputs + numOutputs);
    std::transform(inputs, inputs + numInputs, shapes.begin(), shapeOf);
    std::transform(outputs, outputs + numOutputs, shapes.begin() + numInputs, shapeOf);
    return shapes;
}

} // namespace longllava
