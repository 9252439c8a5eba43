// Translates TensorRT's descriptions of tensors. See descriptions.h.
#include "descriptions.h"

namespace longllava
{

using nvinfer1::DataType;
using nvinfer1::Dims;

ElementType elementType(DataType type) noexcept
{
    switch (type)
    {
    case DataType::kFLOAT: return ElementType::kFloat32;
    case DataType::kHALF: return ElementType::kFloat16;
    case DataType::kBF16: return ElementType::kBFloat16;
    case DataType::kINT8: return ElementType::kInt8;
    case DataType::kUINT8: return ElementType::kUInt8;
    case DataType::kINT32: return ElementType::kInt32;
    default: return ElementType::kOther;
    }
}

TensorShape tensorShape(DataType type, Dims const& dims) noexcept
{
    TensorShape shape{elementType(type), dims.nbDims, {}};
    std::copy_n(dims.d, std::max(dims.nbDims, 0), shape.dims.begin());
    return shape;
}

TensorShape tensorShape(nvinfer1::DimsExprs const& dims) noexcept
{
    TensorShape shape{ElementType::kOther, dims.nbDims, {}};
    for (int32_t axis = 0; axis < dims.nbDims; ++axis)
    {
        bool const isKnown = dims.d[axis]->isConstant();
        shape.dims[axis] = isKnown ? dims.d[axis]->getConstantValue() : kUnknown;
    }
    return shape;
}

TensorShape largest(nvinfer1::DynamicPluginTensorDesc const& tensor) noexcept
{
    return tensorShape(tensor.desc.type, tensor.max);
}

TensorShape smallest(nvinfer1::DynamicPluginTensorDesc const& tensor) noexcept
{
    return tensorShape(tensor.desc.type, tensor.min);
}

TensorShape exact(nvinfer1::PluginTensorDesc const& tensor) noexcept
{
    return tensorShape(tensor.type, tensor.dims);
}

} // namespace longllava
