// CausalConvWithState: launch arithmetic. Mirrors plan_causal_conv in
// plugins_trt/launch_plans/mixers.py; the constants come from there through generated.h. Must not know
// TensorRT.
#include "operator.h"

namespace longllava
{

namespace
{

class CausalConv final : public Operator
{
public:
    explicit CausalConv(bool channelsLast)
        : mChannelsLast{channelsLast}
        , mForm{*findForm("CausalConvWithState", channelsLast ? "channels_last" : "")}
    {
    }

    Form const& form() const noexcept override
    {
        return mForm;
    }

    Status checkSizes(Sizes const& sizes) const override
    {
        int64_t const dConv = sizes[Symbol::kDConv];
        if (dConv != kUnknown && dConv != kCompiledDConv)
        {
            return Status::failure("CausalConvWithState: the kernels were compiled for d_conv ",
                kCompiledDConv, ", got ", dConv, "; rebuild the library for this model");
        }
        int64_t const dInner = sizes[Symbol::kDInner];
        if (mChannelsLast && dInner != kUnknown && dInner % 16 != 0)
        {
            return Status::failure("CausalConvWithState: channels_last needs d_inner to be a "
                                   "multiple of 16, got ",
                dInner, "; use the channels-first form");
        }
        int64_t const row = sizes[Symbol::kInputRow];
        if (mChannelsLast && row != kUnknown && dInner != kUnknown && row != dInner
            && row != 2 * dInner)
        {
            return Status::failure("CausalConvWithState: a token of 'input' must have d_inner = ",
                dInner, " channels, or twice as many, got ", row,
                "; the tensors of one node must agree");
        }
        return {};
    }

    size_t workspaceBytes(ElementType, Sizes const&) const noexcept override
    {
        return 0;
    }

    Plan plan(Call const& call) const noexcept override
    {
        int64_t const batch = call.sizes[Symbol::kBatch];
        int64_t const seqLen = call.sizes[Symbol::kSeqLen];
        int64_t const dInner = call.sizes[Symbol::kDInner];
        bool const isStep = seqLen <= kStepTokens;
        KernelName const name = kernelName("conv_%s_%s%s", isStep ? "step" : "chunk",
            typeName(call.type), mChannelsLast ? "_channels_last" : "");
        int64_t const channels = mChannelsLast ? kConvChannelsLast : kConvChannelsFirst;
        int64_t const tokens = mChannelsLast ? kConvTokensLast : kConvTokensFirst;
        Plan plan;
        Arguments& arguments = isStep
            ? plan.add(name, ceilDiv(dInner, kConvStepChannels), batch)
            : plan.add(name, ceilDiv(dInner, channels), ceilDiv(seqLen, tokens), batch);
        for (int32_t input = 0; input < mForm.numInputs; ++input)
        {
            arguments.pointer(call.inputs[input]);
        }
        arguments.pointer(call.outputs[0]).pointer(call.outputs[1]);
        int64_t const rows = mChannelsLast ? seqLen : dInner;
        int64_t const input = mChannelsLast ? call.sizes[Symbol::kInputRow] : seqLen;
        int64_t const output = mChannelsLast ? dInner : seqLen;
        arguments.int32(seqLen).int32(dInner);
        arguments.int64(rows * input).int32(input);
        arguments.int64(rows * output).int32(output);
        return plan;
    }

    std::vector<Sizes> everyPath(Sizes const& sizes) const override
    {
        Sizes step = sizes;
        step[Symbol::kSeqLen] = 1;
        Sizes chunk = sizes;
        chunk[Symbol::kSeqLen] = kStepTokens + 1;
        return {step, chunk};
    }

private:
    bool mChannelsLast;
    Form const& mForm;
};

Status create(std::vector<FieldValue> const& values, std::shared_ptr<Operator const>& made)
{
    if (values[0].text != "silu")
    {
        return Status::failure("CausalConvWithState: activation must be 'silu', got '",
            values[0].text, "'; export again, or leave this node to TensorRT");
    }
    if (values[1].number != 1)
    {
        return Status::failure("CausalConvWithState: ndim must be 1, got ", values[1].number);
    }
    int32_t const channelsLast = values[2].number;
    if (channelsLast != 0 && channelsLast != 1)
    {
        return Status::failure(
            "CausalConvWithState: channels_last must be 0 or 1, got ", channelsLast);
    }
    made = std::make_shared<CausalConv>(channelsLast == 1);
    return {};
}

} // namespace

OperatorType causalConvType()
{
    // ndim is no attribute of the node, but TensorRT's parser tells it
    return {"CausalConvWithState",
        {{"activation", FieldKind::kText, nullptr}, {"ndim", FieldKind::kInteger, "1"},
            {"channels_last", FieldKind::kInteger, "0"}},
        create};
}

} // namespace longllava
