// Compares tensors with an operator's form. See form.h.
#include "form.h"

#include <cstring>

namespace longllava
{

namespace
{

//! Sizes beyond these would overflow what is computed from them.
constexpr int64_t kMaxDim = int64_t{1} << 27;
constexpr int64_t kMaxElements = int64_t{1} << 48;

constexpr char const* kTypeNames[] = {"fp32", "fp16", "bf16", "int8", "uint8", "int32", "another dtype"};
constexpr char const* kExpectedTypes[]
    = {"float32, float16 or bfloat16, the same throughout", "float32", "int8",
        "int8 or uint8, two int4 a byte", "int32"};

bool isFloat(ElementType type) noexcept
{
    return type == ElementType::kFloat32 || type == ElementType::kFloat16
        || type == ElementType::kBFloat16;
}

std::string place(Form const& form, Value const& value)
{
    std::string text{form.opType};
    if (form.variant[0] != '\0')
    {
        text += std::string{" ("} + form.variant + ")";
    }
    return text + ": '" + value.name + "' ";
}

std::string describe(Axis const& axis)
{
    if (axis.symbol == Symbol::kNone)
    {
        return std::to_string(axis.offset);
    }
    std::string text{kSymbolNames[static_cast<size_t>(axis.symbol)]};
    text = axis.scale == 1 ? text : std::to_string(axis.scale) + "*" + text;
    text = axis.divisor == 1 ? text : "ceil(" + text + "/" + std::to_string(axis.divisor) + ")";
    return axis.offset == 0 ? text : text + std::to_string(axis.offset);
}

int64_t evaluate(Axis const& axis, Sizes const& sizes) noexcept
{
    if (axis.symbol == Symbol::kNone)
    {
        return axis.offset;
    }
    int64_t const size = sizes[axis.symbol];
    if (size == kUnknown)
    {
        return kUnknown;
    }
    return (axis.scale * size + axis.divisor - 1) / axis.divisor + axis.offset;
}

//! Learn a symbol's value, where it is not known yet and the dimension determines it.
void bind(Axis const& axis, int64_t dim, Sizes& sizes) noexcept
{
    if (axis.symbol != Symbol::kNone && axis.divisor == 1 && dim != kUnknown
        && sizes[axis.symbol] == kUnknown)
    {
        sizes[axis.symbol] = (dim - axis.offset) / axis.scale;
    }
}

Status checkCount(Form const& form, int32_t count)
{
    if (count == form.numInputs || count == form.numInputs + form.numOutputs)
    {
        return {};
    }
    return Status::failure(form.opType, ": expected ", form.numInputs, " inputs",
        form.variant[0] != '\0' ? " for " : "", form.variant, " and ", form.numOutputs,
        " outputs, got ", count, " tensors; export again");
}

//! Check the rank of a tensor and learn from its dimensions.
Status learnDims(Form const& form, Value const& value, TensorShape const& shape, Sizes& sizes)
{
    if (shape.rank != value.rank)
    {
        return Status::failure(place(form, value), "must have ", value.rank, " axes, got ",
            shape.rank, "; export again");
    }
    int64_t elements = 1;
    for (int32_t axis = 0; axis < value.rank; ++axis)
    {
        int64_t const dim = shape.dims[axis];
        if (dim > kMaxDim || dim < kUnknown)
        {
            return Status::failure(place(form, value), "axis ", axis, " must be 1 to ", kMaxDim,
                ", got ", dim, "; no GPU has room for more");
        }
        elements *= dim > 0 ? dim : 1;
        if (elements > kMaxElements)
        {
            return Status::failure(place(form, value), "must have at most ", kMaxElements,
                " elements, got more; no GPU has room for them");
        }
        bind(value.axes[axis], dim, sizes);
    }
    return {};
}

Status checkDims(
    Form const& form, Value const& value, TensorShape const& shape, Sizes const& sizes)
{
    for (int32_t axis = 0; axis < value.rank; ++axis)
    {
        int64_t const dim = shape.dims[axis];
        int64_t const expected = evaluate(value.axes[axis], sizes);
        if (dim != kUnknown && expected != kUnknown && (dim != expected || dim < 1))
        {
            return Status::failure(place(form, value), "axis ", axis, " must be ",
                describe(value.axes[axis]), " = ", expected, " and at least 1, got ", dim,
                "; the tensors of one node must agree");
        }
    }
    return {};
}

} // namespace

char const* typeName(ElementType type) noexcept
{
    return kTypeNames[static_cast<size_t>(type)];
}

Form const* findForm(char const* opType, char const* variant) noexcept
{
    for (size_t i = 0; i < kNumForms; ++i)
    {
        if (std::strcmp(kForms[i].opType, opType) == 0
            && std::strcmp(kForms[i].variant, variant) == 0)
        {
            return &kForms[i];
        }
    }
    return nullptr;
}

bool accepts(ValueType expected, ElementType actual, ElementType model) noexcept
{
    switch (expected)
    {
    case ValueType::kModel: return isFloat(actual) && actual == model;
    case ValueType::kFloat32: return actual == ElementType::kFloat32;
    case ValueType::kInt8: return actual == ElementType::kInt8;
    case ValueType::kPacked:
        return actual == ElementType::kInt8 || actual == ElementType::kUInt8;
    case ValueType::kInt32: return actual == ElementType::kInt32;
    }
    return false;
}

Status matchTypes(Form const& form, TensorShape const* shapes, int32_t count)
{
    Status status = checkCount(form, count);
    for (int32_t i = 0; status.ok() && i < count; ++i)
    {
        Value const& value = form.values[i];
        ElementType const model = shapes[0].type;
        if (!accepts(value.type, shapes[i].type, model))
        {
            bool const isOdd = value.type == ValueType::kModel && isFloat(shapes[i].type);
            return Status::failure(place(form, value), "must be ",
                kExpectedTypes[static_cast<size_t>(value.type)], "; got ",
                typeName(shapes[i].type), isOdd ? " beside " : "", isOdd ? typeName(model) : "",
                ". Cast it in the graph, or export again");
        }
    }
    return status;
}

Status matchDims(Form const& form, TensorShape const* shapes, int32_t count, Sizes& sizes)
{
    Status status = checkCount(form, count);
    for (int32_t i = 0; status.ok() && i < count; ++i)
    {
        status = learnDims(form, form.values[i], shapes[i], sizes);
    }
    for (int32_t i = 0; status.ok() && i < count; ++i)
    {
        status = checkDims(form, form.values[i], shapes[i], sizes);
    }
    return status;
}

} // namespace longllava
