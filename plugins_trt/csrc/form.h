// An operator's form: inputs and outputs, their axes and dtypes, in one layout and weight format.
// The tables are generated from plugins_trt/plugin_formats.py, so nothing is declared twice. Knows neither
// TensorRT nor CUDA.
#pragma once

#include "generated.h"
#include "status.h"

#include <array>
#include <cstddef>
#include <cstdint>

namespace longllava
{

enum class ElementType : int32_t
{
    kFloat32,
    kFloat16,
    kBFloat16,
    kInt8,
    kUInt8,
    kInt32,
    kOther,
};

//! Bytes of one element of T.
constexpr int64_t itemSize(ElementType type) noexcept
{
    return type == ElementType::kFloat32 ? 4 : 2;
}

//! Triton's name of T.
char const* typeName(ElementType type) noexcept;

constexpr int32_t kMaxRank = 8;
constexpr int32_t kMaxTensors = 13;
constexpr int64_t kUnknown = -1;

//! A tensor's type and shape, contiguous; `kUnknown` where a dimension is not known yet.
struct TensorShape
{
    ElementType type;
    int32_t rank;
    std::array<int64_t, kMaxRank> dims;
};

//! One dimension: ceil(scale * symbol / divisor) + offset, or the offset alone.
struct Axis
{
    Symbol symbol;
    int32_t scale;
    int32_t divisor;
    int32_t offset;

    bool operator==(Axis const& other) const noexcept
    {
        return symbol == other.symbol && scale == other.scale && divisor == other.divisor
            && offset == other.offset;
    }
};

enum class ValueType : int32_t
{
    //! The model's dtype: float32, float16 or bfloat16, the same throughout.
    kModel,
    kFloat32,
    kInt8,
    //! Two int4 a byte, in int8 or uint8.
    kPacked,
    kInt32,
};

struct Value
{
    char const* name;
    ValueType type;
    int32_t rank;
    std::array<Axis, 4> axes;
};

struct Form
{
    char const* opType;
    //! Layout or weight format; empty where there is one form alone.
    char const* variant;
    int32_t numInputs;
    int32_t numOutputs;
    //! The inputs, then the outputs.
    std::array<Value, kMaxTensors> values;
};

//! Generated.
extern Form const kForms[];
extern size_t const kNumForms;

Form const* findForm(char const* opType, char const* variant) noexcept;

//! The value of every symbol of one call.
class Sizes
{
public:
    Sizes() noexcept
    {
        mValues.fill(kUnknown);
    }

    int64_t& operator[](Symbol symbol) noexcept
    {
        return mValues[static_cast<size_t>(symbol)];
    }

    int64_t operator[](Symbol symbol) const noexcept
    {
        return mValues[static_cast<size_t>(symbol)];
    }

private:
    std::array<int64_t, kNumSymbols> mValues;
};

//! Whether a tensor may have this type beside a first input of type `model`.
bool accepts(ValueType expected, ElementType actual, ElementType model) noexcept;

//! Compare the number and the types of tensors with a form.
//! @param shapes The inputs, and the outputs too where there are as many as both.
Status matchTypes(Form const& form, TensorShape const* shapes, int32_t count);

//! Compare the number, the ranks and the dimensions of tensors with a form, and with each other.
//! @param sizes Written: what the known dimensions say.
Status matchDims(Form const& form, TensorShape const* shapes, int32_t count, Sizes& sizes);

} // namespace longllava
