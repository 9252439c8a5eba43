// The creators of our plugins, and the two functions by which TensorRT finds them.
// Knows fields by their names and types alone.
#include "plugin.h"

#include <cstring>

namespace longllava
{

namespace
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

Status readField(char const* opType, PluginField const& field, FieldValue& value)
{
    value = {field.name, FieldKind::kInteger, 0, 0.0F, {}};
    if (field.type == PluginFieldType::kCHAR)
    {
        value.kind = FieldKind::kText;
        char const* const text = static_cast<char const*>(field.data);
        value.text.assign(text, strnlen(text, static_cast<size_t>(field.length)));
        return {};
    }
    if (field.length == 1 && field.type == PluginFieldType::kINT32)
    {
        value.number = *static_cast<int32_t const*>(field.data);
        return {};
    }
    if (field.length == 1 && field.type == PluginFieldType::kINT64)
    {
        value.number = static_cast<int32_t>(*static_cast<int64_t const*>(field.data));
        return {};
    }
    if (field.length == 1 && field.type == PluginFieldType::kFLOAT32)
    {
        value.kind = FieldKind::kReal;
        value.real = *static_cast<float const*>(field.data);
        return {};
    }
    return Status::failure(opType, ": attribute '", field.name,
        "' must be one number or a string, got type ", static_cast<int32_t>(field.type), " of ",
        field.length, "; correct the node");
}

Status createFrom(OperatorType const& type, nvinfer1::PluginFieldCollection const& fields,
    nvinfer1::IPluginV3*& plugin)
{
    std::vector<FieldValue> given(fields.nbFields);
    Status status;
    for (int32_t i = 0; status.ok() && i < fields.nbFields; ++i)
    {
        status = readField(type.name, fields.fields[i], given[i]);
    }
    std::vector<FieldValue> complete;
    std::shared_ptr<Operator const> op;
    if (status.ok())
    {
        status = makeOperator(type, given, complete, op);
    }
    if (status.ok())
    {
        plugin = new Plugin(std::move(op), std::move(complete));
    }
    return status;
}

PluginFieldType fieldType(FieldKind kind) noexcept
{
    switch (kind)
    {
    case FieldKind::kInteger: return PluginFieldType::kINT32;
    case FieldKind::kReal: return PluginFieldType::kFLOAT32;
    case FieldKind::kText: return PluginFieldType::kCHAR;
    }
    return PluginFieldType::kUNKNOWN;
}

class Creator final : public nvinfer1::IPluginCreatorV3One
{
public:
    explicit Creator(OperatorType const& type)
        : mType{type}
    {
        for (FieldSpec const& field : type.fields)
        {
            mFields.emplace_back(field.name, nullptr, fieldType(field.kind), 1);
        }
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    nvinfer1::IPluginV3* createPlugin(char const*,
        nvinfer1::PluginFieldCollection const* fields, nvinfer1::TensorRTPhase) noexcept override
    {
        nvinfer1::IPluginV3* plugin{};
        try
        {
            report(createFrom(mType, *fields, plugin));
        }
        catch (std::exception const&)
        {
            // out of memory: TensorRT reports the null
        }
        return plugin;
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    char const* getPluginName() const noexcept override
    {
        return mType.name;
    }

    char const* getPluginVersion() const noexcept override
    {
        return kPluginVersion;
    }

    char const* getPluginNamespace() const noexcept override
    {
        return "";
    }

private:
    OperatorType const& mType;
    std::vector<PluginField> mFields;
    nvinfer1::PluginFieldCollection mCollection{};
};

} // namespace

} // namespace longllava

#define LONGLLAVA_EXPORT extern "C" __attribute__((visibility("default")))

LONGLLAVA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    longllava::setLoggerFinder(finder);
}

LONGLLAVA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static std::vector<longllava::Creator> creators = [] {
        auto const& types = longllava::operatorTypes();
        return std::vector<longllava::Creator>(types.begin(), types.end());
    }();
    static std::vector<nvinfer1::IPluginCreatorInterface*> const pointers = [] {
        std::vector<nvinfer1::IPluginCreatorInterface*> found;
        for (longllava::Creator& creator : creators)
        {
            found.push_back(&creator);
        }
        return found;
    }();
    count = static_cast<int32_t>(pointers.size());
    return pointers.data();
}
