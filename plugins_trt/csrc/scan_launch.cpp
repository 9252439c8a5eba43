// Plans a scan over many tokens. See scan_launch.h; the constants come from Python through
// generated.h.
#include "scan_launch.h"

#include <algorithm>

namespace longllava
{

namespace
{

//! The number of chunks that time is cut into, and their length; the last may be shorter.
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

} // namespace

Plan ScanOperator::plan(Call const& call) const noexcept
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

std::vector<Sizes> ScanOperator::everyPath(Sizes const& sizes) const
{
    Sizes step = sizes;
    step[Symbol::kBatch] = 1;
    step[Symbol::kSeqLen] = 1;
    Sizes chunks = step;
    chunks[Symbol::kSeqLen] = 2 * kScanMinChunk;
    return {step, chunks};
}

bool ScanOperator::mayAlias(Sizes const& sizes, int32_t input, int32_t output) const noexcept
{
    // only the step reads all of a channel's state before it writes any
    return input == form().numInputs - 1 && output == 1
        && sizes[Symbol::kSeqLen] <= kStepTokens;
}

Status checkDState(char const* opType, Sizes const& sizes)
{
    int64_t const dState = sizes[Symbol::kDState];
    if (dState != kUnknown && dState != kCompiledDState)
    {
        return Status::failure(opType, ": the kernels were compiled for d_state ", kCompiledDState,
            ", got ", dState, "; rebuild the library for this model");
    }
    return {};
}

size_t scanWorkspaceBytes(Sizes const& largest) noexcept
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

void planScanChunks(ElementType type, Sizes const& sizes, ScanTensors const& tensors,
    Workspace& workspace, Plan& plan) noexcept
{
    int64_t const batch = sizes[Symbol::kBatch];
    int64_t const seqLen = sizes[Symbol::kSeqLen];
    int64_t const dInner = sizes[Symbol::kDInner];
    char const* const name = typeName(type);
    Chunks const chunks = cutTime(batch, seqLen, dInner);
    int64_t const columns = ceilDiv(dInner, kScanChannels);
    int64_t const slots = chunks.count - 1;
    Between between{};
    if (slots > 0)
    {
        between = carve(workspace, batch, slots, dInner);
        Arguments& summaries
            = plan.add(kernelName("scan_summaries_%s", name), columns, slots, batch);
        summaries.pointer(tensors.u).pointer(tensors.dt).pointer(tensors.aLog);
        summaries.pointer(tensors.b).pointer(tensors.dtBias);
        summaries.pointer(between.chunkStates).pointer(between.chunkDeltas);
        summaries.int32(seqLen).int32(dInner).int32(chunks.length);
        Arguments& prefix = plan.add(kernelName("scan_prefix_%s", name),
            ceilDiv(dInner * kCompiledDState, kScanPrefixElements), batch);
        prefix.pointer(tensors.aLog).pointer(tensors.state);
        prefix.pointer(between.chunkStates).pointer(between.chunkDeltas);
        prefix.int32(dInner).int32(slots);
    }
    Arguments& outputs = plan.add(kernelName("scan_outputs_%s", name), columns, chunks.count, batch);
    outputs.pointer(tensors.u).pointer(tensors.dt).pointer(tensors.aLog).pointer(tensors.b);
    outputs.pointer(tensors.c).pointer(tensors.d).pointer(tensors.z).pointer(tensors.dtBias);
    outputs.pointer(tensors.state).pointer(between.chunkStates);
    outputs.pointer(tensors.y).pointer(tensors.stateOut);
    outputs.int32(seqLen).int32(dInner).int32(tensors.zRow).int32(chunks.length);
}

} // namespace longllava
