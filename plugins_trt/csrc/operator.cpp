// The list of operators, and the check of their fields. See operator.h.
#include "operator.h"

#include <algorithm>
#include <cstring>

namespace longllava
{

namespace
{

constexpr char const* kKindNames[] = {"an integer", "a number with a point", "a string"};

FieldValue const* findValue(std::vector<FieldValue> const& values, char const* name)
{
    auto const found = std::find_if(values.begin(), values.end(),
        [name](FieldValue const& value) { return value.name == name; });
    return found == values.end() ? nullptr : &*found;
}

Status refuseUnknown(OperatorType const& type, std::vector<FieldValue> const& given)
{
    std::string known;
    for (FieldSpec const& spec : type.fields)
    {
        known += (known.empty() ? "" : ", ") + std::string{spec.name};
    }
    for (FieldValue const& value : given)
    {
        bool const isKnown = std::any_of(type.fields.begin(), type.fields.end(),
            [&value](FieldSpec const& spec) { return value.name == spec.name; });
        if (!isKnown)
        {
            return Status::failure(type.name, ": unknown attribute '", value.name,
                "'; it has: ", known.empty() ? "none" : known);
        }
    }
    return {};
}

Status completeOne(OperatorType const& type, FieldSpec const& spec,
    std::vector<FieldValue> const& given, FieldValue& value)
{
    FieldValue const* const found = findValue(given, spec.name);
    if (found == nullptr && spec.fallback == nullptr)
    {
        return Status::failure(type.name, ": attribute '", spec.name,
            "' is missing; the node must have it");
    }
    if (found != nullptr && found->kind != spec.kind)
    {
        return Status::failure(type.name, ": attribute '", spec.name, "' must be ",
            kKindNames[static_cast<size_t>(spec.kind)], "; correct the node");
    }
    if (found != nullptr)
    {
        value = *found;
        return {};
    }
    value = {spec.name, spec.kind, 0, 0.0F, {}};
    switch (spec.kind)
    {
    case FieldKind::kInteger: value.number = std::stoi(spec.fallback); break;
    case FieldKind::kReal: value.real = std::stof(spec.fallback); break;
    case FieldKind::kText: value.text = spec.fallback; break;
    }
    return {};
}

} // namespace

bool Operator::mayAlias(Sizes const&, int32_t, int32_t) const noexcept
{
    return false;
}

std::vector<OperatorType> const& operatorTypes()
{
    static std::vector<OperatorType> const types{
        selectiveScanType(),
        sparseMoeType(), causalConvType(), cachedAttentionType(), mambaScanType()};
    return types;
}

OperatorType const* findOperatorType(char const* name)
{
    for (OperatorType const& type : operatorTypes())
    {
        if (std::strcmp(type.name, name) == 0)
        {
            return &type;
        }
    }
    return nullptr;
}

Status makeOperator(OperatorType const& type, std::vector<FieldValue> const& given,
    std::vector<FieldValue>& complete, std::shared_ptr<Operator const>& made)
{
    Status status = refuseUnknown(type, given);
    complete.assign(type.fields.size(), {});
    for (size_t i = 0; status.ok() && i < complete.size(); ++i)
    {
        status = completeOne(type, type.fields[i], given, complete[i]);
    }
    return status.ok() ? type.create(complete, made) : status;
}

} // namespace longllava
