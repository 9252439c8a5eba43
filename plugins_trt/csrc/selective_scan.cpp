// SelectiveScan: launch arithmetic. Mirrors plan_selective_scan in plugins_trt/launch_plans/mixers.py;
// the constants come from there through generated.h. Must not know TensorRT.
#include "operator.h"

#include <algorithm>

namespace longllava
{

namespace
{

//! How time is cut: so many chunks, each so long; the last may be shorter.
struct Chunks
{
    int64_t count;
    int64_t length;
};

int64_t mostChunks(int64_t batch, int64_t seqLen, int64_t dInner) noexcept
{
    int64_t const programs = batch * ceilDiv(dInner, kScanChannels);
    return std::min(
        ceilDiv(kScanProgramsWanted, programs), std::max<int64_t>(seqLen / kScanMinChunk, 1));
}

Chunks cutTime(int64_t batch, int64_t seqLen, int64_t dInner) noexcept
{
    int64_t const length = ceilDiv(seqLen, mostChunks(batch, seqLen, dInner));
    return {ceilDiv(seqLen, length), length};
}

//! The buffers between the kernels, float32.
struct Between
{
    void* chunkStates;
    void* chunkDeltas;
};

Between carve(Workspace& workspace, int64_t batch, int64_t slots, int64_t dInner) noexcept
{
    int64_t const deltas = batch * slots * dInner * static_cast<int64_t>(sizeof(float));
    void* const states = workspace.take(deltas * kCompiledDState);
    return {states, workspace.take(deltas)};
}

class SelectiveScan final : public Operator
{
public:
    Form const& form() const noexcept override
    {
        static Form const& found = *findForm("SelectiveScan", "");
        return found;
    }

    Status checkSizes(Sizes const& sizes) const override
    {
        int64_t const dState = sizes[Symbol::kDState];
        if (dState != kUnknown && dState != kCompiledDState)
        {
            return Status::failure("SelectiveScan: the kernels were compiled for d_state ",
                kCompiledDState, ", got ", dState, "; rebuild the library for this model");
        }
        return {};
    }

    size_t workspaceBytes(ElementType, Sizes const& largest) const noexcept override
    {
        int64_t const dInner = largest[Symbol::kDInner];
        size_t most = 0;
        // fewer sequences are cut into more chunks, so the largest batch need not need the most
        for (int64_t batch = 1; batch <= largest[Symbol::kBatch]; ++batch)
        {
            int64_t const chunks = mostChunks(batch, largest[Symbol::kSeqLen], dInner);
            Workspace workspace{nullptr};
            carve(workspace, batch, chunks - 1, dInner);
            most = std::max(most, workspace.used());
        }
        return most;
    }

    Plan plan(Call const& call) const noexcept override
    {
        Plan plan;
        if (call.sizes[Symbol::kSeqLen] <= kStepTokens)
        {
            planStep(call, plan);
        }
        else
        {
            planChunks(call, plan);
        }
        return plan;
    }

    std::vector<Sizes> everyPath(Sizes const& sizes) const override
    {
        Sizes step = sizes;
        step[Symbol::kBatch] = 1;
        step[Symbol::kDInner] = 1;
        step[Symbol::kSeqLen] = 1;
        Sizes chunks = step;
        chunks[Symbol::kSeqLen] = 2 * kScanMinChunk;
        return {step, chunks};
    }

    bool mayAlias(Sizes const& sizes, int32_t input, int32_t output) const noexcept override
    {
        // only the step reads all of a channel's state before it writes any
        return input == kState && output == 1 && sizes[Symbol::kSeqLen] <= kStepTokens;
    }

private:
    enum Input
    {
        kU,
        kDt,
        kALog,
        kB,
        kC,
        kD,
        kZ,
        kDtBias,
        kState,
    };

    static void planStep(Call const& call, Plan& plan) noexcept
    {
        int64_t const dInner = call.sizes[Symbol::kDInner];
        Arguments& arguments = plan.add(kernelName("scan_step_%s", typeName(call.type)),
            ceilDiv(dInner, kScanStepChannels), call.sizes[Symbol::kBatch]);
        for (int32_t input = kU; input <= kState; ++input)
        {
            arguments.pointer(call.inputs[input]);
        }
        arguments.pointer(call.outputs[0]).pointer(call.outputs[1]);
        arguments.int32(call.sizes[Symbol::kSeqLen]).int32(dInner);
    }

    static void planChunks(Call const& call, Plan& plan) noexcept
    {
        void const* const* const in = call.inputs;
        int64_t const batch = call.sizes[Symbol::kBatch];
        int64_t const seqLen = call.sizes[Symbol::kSeqLen];
        int64_t const dInner = call.sizes[Symbol::kDInner];
        char const* const type = typeName(call.type);
        Chunks const chunks = cutTime(batch, seqLen, dInner);
        int64_t const columns = ceilDiv(dInner, kScanChannels);
        int64_t const slots = chunks.count - 1;
        Between between{};
        if (slots > 0)
        {
            Workspace workspace{call.workspace};
            between = carve(workspace, batch, slots, dInner);
            Arguments& summaries
                = plan.add(kernelName("scan_summaries_%s", type), columns, slots, batch);
            summaries.pointer(in[kU]).pointer(in[kDt]).pointer(in[kALog]).pointer(in[kB]);
            summaries.pointer(in[kDtBias]);
            summaries.pointer(between.chunkStates).pointer(between.chunkDeltas);
            summaries.int32(seqLen).int32(dInner).int32(chunks.length);
            Arguments& prefix = plan.add(kernelName("scan_prefix_%s", type),
                ceilDiv(dInner * kCompiledDState, kScanPrefixElements), batch);
            prefix.pointer(in[kALog]).pointer(in[kState]);
            prefix.pointer(between.chunkStates).pointer(between.chunkDeltas);
            prefix.int32(dInner).int32(slots);
        }
        Arguments& outputs
            = plan.add(kernelName("scan_outputs_%s", type), columns, chunks.count, batch);
        for (int32_t input = kU; input <= kState; ++input)
        {
            outputs.pointer(in[input]);
        }
        outputs.pointer(between.chunkStates).pointer(call.outputs[0]).pointer(call.outputs[1]);
        outputs.int32(seqLen).int32(dInner).int32(chunks.length);
    }
};

} // namespace

OperatorType selectiveScanType()
{
    return {"SelectiveScan", {},
        [](std::vector<FieldValue> const&, std::shared_ptr<Operator const>& made) {
            made = std::make_shared<SelectiveScan>();
            return Status{};
        }};
}

} // namespace longllava
