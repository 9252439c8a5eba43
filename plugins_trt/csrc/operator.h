// An operator as a GPU runs it: its fields, its limits, its workspace, its launches.
// Must not know TensorRT: plugins (plugin.h) and the C interface (c_api.cpp) both stand on this.
#pragma once

#include "form.h"
#include "launch.h"

#include <memory>
#include <string>
#include <vector>

namespace longllava
{

enum class FieldKind : int32_t
{
    kInteger,
    kReal,
    kText,
};

//! A field of a plugin, which is an attribute of a node.
struct FieldSpec
{
    char const* name;
    FieldKind kind;
    //! What holds where the node does not say; null if it must.
    char const* fallback;
};

struct FieldValue
{
    std::string name;
    FieldKind kind;
    int32_t number;
    float real;
    std::string text;
};

//! What the launches of one call are made from.
struct Call
{
    ElementType type;
    Sizes sizes;
    //! In the order of the form.
    void const* const* inputs;
    void* const* outputs;
    void* workspace;
    //! Of the card at hand, or of the largest where there is none.
    int64_t multiprocessors;
};

class Operator
{
public:
    virtual ~Operator() = default;

    virtual Form const& form() const noexcept = 0;

    //! Refuse sizes that no kernel was compiled for; those that are not known yet pass.
    virtual Status checkSizes(Sizes const& sizes) const = 0;

    //! Bytes that are enough for every call with at most these sizes.
    virtual size_t workspaceBytes(ElementType type, Sizes const& largest) const noexcept = 0;

    //! The launches of one call, from sizes that `checkSizes` accepts.
    virtual Plan plan(Call const& call) const noexcept = 0;

    //! Sizes whose plans name between them every kernel that any call may need.
    virtual std::vector<Sizes> everyPath(Sizes const& sizes) const = 0;

    //! Whether an output may be the very memory of an input.
    virtual bool mayAlias(Sizes const& sizes, int32_t input, int32_t output) const noexcept;
};

//! A kind of operator: its name, its fields, and how to make one.
struct OperatorType
{
    char const* name;
    std::vector<FieldSpec> fields;
    //! @param values One for each field, in order.
    Status (*create)(std::vector<FieldValue> const& values, std::shared_ptr<Operator const>& made);
};

//! SelectiveScan, SparseMoE, CausalConvWithState, CachedAttention, MambaScan.
std::vector<OperatorType> const& operatorTypes();

OperatorType const* findOperatorType(char const* name);

//! Make an operator from the fields that are given: unknown, missing and wrong ones are refused.
Status makeOperator(OperatorType const& type, std::vector<FieldValue> const& given,
    std::vector<FieldValue>& complete, std::shared_ptr<Operator const>& made);

//! Defined beside each operator's plan.
OperatorType selectiveScanType();
OperatorType sparseMoeType();
OperatorType causalConvType();
OperatorType cachedAttentionType();
OperatorType mambaScanType();

} // namespace longllava
