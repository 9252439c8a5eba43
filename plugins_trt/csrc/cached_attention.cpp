// CachedAttention: launch arithmetic. Mirrors plan_cached_attention in
// plugins_trt/launch_plans/cached_attention.py, without what appends to the caches: TensorRT does
// that. Constants come from there through generated.h. Must not know TensorRT.
#include "operator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace longllava
{

namespace
{

//! log2(e): softmax's powers are of two.
constexpr double kLog2E = 1.4426950408889634;

AttentionTile const& selectTile(ElementType type) noexcept
{
    return type == ElementType::kFloat32 ? kAttentionTile32 : kAttentionTile16;
}

int64_t powerOfTwo(int64_t size) noexcept
{
    int64_t power = 1;
    while (power < size)
    {
        power *= 2;
    }
    return power;
}

struct AttentionShape
{
    int64_t batch;
    int64_t seqLen;
    int64_t heads;
    int64_t kvHeads;
    int64_t headDim;
    int64_t capacity;

    explicit AttentionShape(Sizes const& sizes) noexcept
        : batch{sizes[Symbol::kBatch]}
        , seqLen{sizes[Symbol::kSeqLen]}
        , heads{sizes[Symbol::kHeads]}
        , kvHeads{sizes[Symbol::kKvHeads]}
        , headDim{sizes[Symbol::kHeadDim]}
        , capacity{sizes[Symbol::kCapacity]}
    {
    }

    //! Heads that share a key/value head.
    int64_t group() const noexcept
    {
        return heads / kvHeads;
    }

    //! Queries of one sequence that share a key/value head.
    int64_t rows() const noexcept
    {
        return seqLen * group();
    }
};

//! Into how many parts all positions of a key/value head are divided, and how many there may be:
//! each sequence's last part may be a short one.
struct Parts
{
    int64_t count;
    int64_t slots;
};

Parts dealParts(
    AttentionShape const& shape, AttentionTile const& tile, int64_t multiprocessors) noexcept
{
    int64_t const most = std::min(multiprocessors, kAttentionMaxMultiprocessors);
    int64_t const parts = std::max<int64_t>(tile.decodePrograms * most / shape.kvHeads, 1);
    int64_t const longest
        = ceilDiv(ceilDiv(shape.capacity, tile.decodeKeys), kAttentionMinPartBlocks);
    return {parts, std::min(parts + shape.batch - 1, shape.batch * longest)};
}

//! The buffers between the kernels, float32.
struct Between
{
    void* partOutputs;
    void* partLogs;
};

Between carve(
    Workspace& workspace, AttentionShape const& shape, int64_t slots, int64_t rows) noexcept
{
    int64_t const logs = shape.kvHeads * slots * rows * static_cast<int64_t>(sizeof(float));
    void* const outputs = workspace.take(logs * shape.headDim);
    return {outputs, workspace.take(logs)};
}

//! The scale of the scores times log2(e), as the integer of the same bits: kernels take no floats.
int32_t scaleBits(int64_t headDim) noexcept
{
    double const scale = std::pow(static_cast<double>(headDim), -0.5) * kLog2E;
    float const narrow = static_cast<float>(scale);
    int32_t bits{};
    std::memcpy(&bits, &narrow, sizeof bits);
    return bits;
}

class CachedAttention final : public Operator
{
public:
    Form const& form() const noexcept override
    {
        static Form const& found = *findForm("CachedAttention", "");
        return found;
    }

    Status checkSizes(Sizes const& sizes) const override
    {
        AttentionShape const shape{sizes};
        if (shape.batch > kAttentionMaxSequences)
        {
            return Status::failure("CachedAttention: the kernels were compiled for up to ",
                kAttentionMaxSequences, " sequences, got ", shape.batch, "; run fewer at once");
        }
        if (shape.heads == kUnknown || shape.kvHeads == kUnknown || shape.headDim == kUnknown)
        {
            return {};
        }
        if (shape.heads % shape.kvHeads != 0)
        {
            return Status::failure("CachedAttention: heads must be a multiple of kv_heads, got ",
                shape.heads, " and ", shape.kvHeads);
        }
        std::string known;
        for (AttentionHeads const& each : kAttentionHeads)
        {
            if (each.headDim == shape.headDim && each.group == shape.group())
            {
                return {};
            }
            known += (known.empty() ? "" : ", ") + std::to_string(each.headDim) + "x"
                + std::to_string(each.group);
        }
        return Status::failure("CachedAttention: the kernels were compiled for heads of ", known,
            " (head_dim x heads that share a key/value head), got ", shape.headDim, "x",
            shape.group(), "; rebuild the library for this model");
    }

    size_t workspaceBytes(ElementType type, Sizes const& largest) const noexcept override
    {
        AttentionShape const shape{largest};
        AttentionTile const& tile = selectTile(type);
        int64_t const most = tile.decodeRows / shape.group() * shape.group();
        Workspace workspace{nullptr};
        carve(workspace, shape, dealParts(shape, tile, kAttentionMaxMultiprocessors).slots,
            std::min(shape.rows(), most));
        return workspace.used();
    }

    Plan plan(Call const& call) const noexcept override
    {
        AttentionShape const shape{call.sizes};
        Plan plan;
        if (shape.rows() > selectTile(call.type).decodeRows)
        {
            planChunk(call, shape, plan);
        }
        else
        {
            planDecode(call, shape, plan);
        }
        return plan;
    }

    std::vector<Sizes> everyPath(Sizes const& sizes) const override
    {
        int64_t const group = AttentionShape{sizes}.group();
        int64_t const most = std::max(kAttentionTile16.decodeRows, kAttentionTile32.decodeRows);
        std::vector<Sizes> paths;
        for (int64_t rows = kAttentionMinRows; rows <= most; rows *= 2)
        {
            paths.push_back(sizes);
            paths.back()[Symbol::kSeqLen] = std::max<int64_t>(rows / group, 1);
        }
        paths.push_back(sizes);
        paths.back()[Symbol::kSeqLen] = most / group + 1;
        return paths;
    }

private:
    enum Input
    {
        kQ,
        kKeyCache,
        kValueCache,
        kPastLen,
    };

    //! Queries, angles that are not there, lengths, caches.
    static void pushRead(Call const& call, Arguments& arguments) noexcept
    {
        arguments.pointer(call.inputs[kQ]).pointer(nullptr).pointer(nullptr);
        arguments.pointer(call.inputs[kPastLen]);
        arguments.pointer(call.inputs[kKeyCache]).pointer(call.inputs[kValueCache]);
    }

    //! Strides of contiguous queries, then sizes.
    static void pushSizes(AttentionShape const& shape, Arguments& arguments) noexcept
    {
        int64_t const token = shape.heads * shape.headDim;
        arguments.int64(shape.seqLen * token).int32(token);
        arguments.int32(shape.seqLen).int32(shape.capacity).int32(scaleBits(shape.headDim));
    }

    static void planChunk(Call const& call, AttentionShape const& shape, Plan& plan) noexcept
    {
        int64_t const blocks = ceilDiv(shape.seqLen, selectTile(call.type).chunkQueries);
        Arguments& arguments = plan.add(
            kernelName("attention_chunk_%s_d%d_g%d", typeName(call.type),
                static_cast<int>(shape.headDim), static_cast<int>(shape.group())),
            blocks, shape.heads, shape.batch);
        pushRead(call, arguments);
        arguments.pointer(call.outputs[0]);
        pushSizes(shape, arguments);
    }

    static void planDecode(Call const& call, AttentionShape const& shape, Plan& plan) noexcept
    {
        char const* const type = typeName(call.type);
        int const headDim = static_cast<int>(shape.headDim);
        int const group = static_cast<int>(shape.group());
        Parts const parts = dealParts(shape, selectTile(call.type), call.multiprocessors);
        Workspace workspace{call.workspace};
        Between const between = carve(workspace, shape, parts.slots, shape.rows());
        int64_t const rows = powerOfTwo(std::max<int64_t>(shape.rows(), kAttentionMinRows));

        Arguments& decode = plan.add(kernelName("attention_decode_%s_d%d_g%d_rows%d", type, headDim,
                                         group, static_cast<int>(rows)),
            parts.slots, shape.kvHeads);
        pushRead(call, decode);
        decode.pointer(between.partOutputs).pointer(between.partLogs);
        pushSizes(shape, decode);
        decode.int32(shape.batch).int32(parts.count);

        Arguments& combine = plan.add(kernelName("combine_parts_%s_d%d_g%d", type, headDim, group),
            shape.rows(), shape.kvHeads, shape.batch);
        combine.pointer(between.partOutputs).pointer(between.partLogs);
        combine.pointer(call.inputs[kPastLen]).pointer(call.outputs[0]);
        combine.int32(shape.seqLen).int32(shape.capacity);
        combine.int32(shape.batch).int32(parts.count).int32(parts.slots);
    }
};

} // namespace

OperatorType cachedAttentionType()
{
    return {"CachedAttention", {},
        [](std::vector<FieldValue> const&, std::shared_ptr<Operator const>& made) {
            made = std::make_shared<CachedAttention>();
            return Status{};
        }};
}

} // namespace longllava
