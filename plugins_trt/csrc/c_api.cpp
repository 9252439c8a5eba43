// Implements longllava_plugins.h. Must not know TensorRT.
#include "longllava_plugins.h"

#include "execution.h"

#include <algorithm>
#include <charconv>
#include <sstream>

namespace
{

using longllava::ElementType;
using longllava::FieldKind;
using longllava::FieldValue;
using longllava::Operator;
using longllava::OperatorType;
using longllava::Status;
using longllava::TensorShape;

thread_local std::string gLastError;

int32_t finish(Status const& status)
{
    if (status.ok())
    {
        return 0;
    }
    gLastError = status.message();
    return -1;
}

FieldValue parseField(std::string name, std::string text)
{
    FieldValue field{std::move(name), FieldKind::kText, 0, 0.0F, std::move(text)};
    char const* const begin = field.text.data();
    char const* const end = begin + field.text.size();
    // whatever the locale
    if (field.text.find_first_not_of("0123456789") == std::string::npos)
    {
        field.kind = FieldKind::kInteger;
        std::from_chars(begin, end, field.number);
    }
    else if (field.text.find_first_not_of("0123456789.e+-") == std::string::npos
        && std::from_chars(begin, end, field.real).ptr == end)
    {
        field.kind = FieldKind::kReal;
    }
    return field;
}

Status parseFields(
    OperatorType const& type, char const* attributes, std::vector<FieldValue>& fields)
{
    std::istringstream words{attributes == nullptr ? "" : attributes};
    for (std::string word; words >> word;)
    {
        size_t const equals = word.find('=');
        if (equals == std::string::npos || equals + 1 == word.size())
        {
            return Status::failure(
                type.name, ": attributes must be name=value, got '", word, "'");
        }
        fields.push_back(parseField(word.substr(0, equals), word.substr(equals + 1)));
    }
    return {};
}

Status findOperator(
    char const* opType, char const* attributes, std::shared_ptr<Operator const>& op)
{
    OperatorType const* const type = longllava::findOperatorType(opType);
    if (type == nullptr)
    {
        return Status::failure("operator '", opType, "': this library has SelectiveScan, SparseMoE, "
                               "CausalConvWithState, CachedAttention and MambaScan");
    }
    std::vector<FieldValue> given;
    std::vector<FieldValue> complete;
    Status status = parseFields(*type, attributes, given);
    return status.ok() ? longllava::makeOperator(*type, given, complete, op) : status;
}

TensorShape shapeOf(LongllavaTensor const& tensor)
{
    bool const isKnown
        = tensor.type >= 0 && tensor.type < static_cast<int32_t>(ElementType::kOther);
    TensorShape shape{
        isKnown ? static_cast<ElementType>(tensor.type) : ElementType::kOther, tensor.rank, {}};
    std::copy(std::begin(tensor.dims), std::end(tensor.dims), shape.dims.begin());
    return shape;
}

Status countTensors(Operator const& op, int32_t numInputs, int32_t numOutputs)
{
    longllava::Form const& form = op.form();
    if (numInputs == form.numInputs && numOutputs == form.numOutputs)
    {
        return {};
    }
    return Status::failure(form.opType, ": expected ", form.numInputs, " inputs and ",
        form.numOutputs, " outputs, got ", numInputs, " and ", numOutputs);
}

//! In TensorRT a size may be unknown until a call; here there is no other time to learn it.
Status checkKnown(Operator const& op, std::vector<TensorShape> const& shapes)
{
    for (size_t i = 0; i < shapes.size(); ++i)
    {
        int32_t const rank = std::min<int32_t>(shapes[i].rank, shapes[i].dims.size());
        for (int32_t axis = 0; axis < rank; ++axis)
        {
            if (shapes[i].dims[axis] == longllava::kUnknown)
            {
                return Status::failure(op.form().opType, ": '", op.form().values[i].name,
                    "' axis ", axis, " must be at least 1, got ", longllava::kUnknown);
            }
        }
    }
    return {};
}

Status workspaceSize(Operator const& op, std::vector<TensorShape> const& shapes, uint64_t& bytes)
{
    longllava::Sizes sizes;
    int32_t const count = static_cast<int32_t>(shapes.size());
    Status status = longllava::matchTypes(op.form(), shapes.data(), count);
    if (status.ok())
    {
        status = longllava::checkShapes(op, shapes.data(), count, sizes);
    }
    if (status.ok())
    {
        bytes = op.workspaceBytes(shapes[0].type, sizes);
    }
    return status;
}

} // namespace

#define LONGLLAVA_EXPORT extern "C" __attribute__((visibility("default")))

LONGLLAVA_EXPORT char const* longllava_plugins_version(void)
{
    return longllava::kLibraryVersion;
}

LONGLLAVA_EXPORT char const* longllava_last_error(void)
{
    return gLastError.c_str();
}

LONGLLAVA_EXPORT int32_t longllava_workspace_size(char const* op_type, char const* attributes,
    LongllavaTensor const* inputs, int32_t num_inputs, uint64_t* bytes)
{
    std::shared_ptr<Operator const> op;
    Status status = findOperator(op_type, attributes, op);
    if (status.ok())
    {
        status = countTensors(*op, num_inputs, op->form().numOutputs);
    }
    if (status.ok())
    {
        std::vector<TensorShape> shapes(num_inputs);
        std::transform(inputs, inputs + num_inputs, shapes.begin(), shapeOf);
        status = checkKnown(*op, shapes);
        status = status.ok() ? workspaceSize(*op, shapes, *bytes) : status;
    }
    return finish(status);
}

LONGLLAVA_EXPORT int32_t longllava_enqueue(char const* op_type, char const* attributes,
    LongllavaTensor const* inputs, int32_t num_inputs, LongllavaTensor const* outputs,
    int32_t num_outputs, void* workspace, void* stream)
{
    std::shared_ptr<Operator const> op;
    Status status = findOperator(op_type, attributes, op);
    if (status.ok())
    {
        status = countTensors(*op, num_inputs, num_outputs);
    }
    if (!status.ok())
    {
        return finish(status);
    }
    std::vector<TensorShape> shapes;
    std::vector<void const*> read;
    std::vector<void*> written;
    for (int32_t i = 0; i < num_inputs; ++i)
    {
        shapes.push_back(shapeOf(inputs[i]));
        read.push_back(inputs[i].data);
    }
    for (int32_t i = 0; i < num_outputs; ++i)
    {
        shapes.push_back(shapeOf(outputs[i]));
        written.push_back(outputs[i].data);
    }
    if (Status known = checkKnown(*op, shapes); !known.ok())
    {
        return finish(known);
    }
    return finish(longllava::enqueue(*op, shapes.data(), read.data(), written.data(), workspace,
        static_cast<CUstream_st*>(stream)));
}
