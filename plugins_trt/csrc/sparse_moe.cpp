// SparseMoE: limits, workspace, and the arguments of its kernels, in the order of
// plugins_trt/kernels/sparse_moe_*.py. Must not know TensorRT.
#include "operator.h"
#include "sparse_moe_launch.h"

#include <algorithm>

namespace longllava
{

namespace
{

class SparseMoe final : public Operator
{
public:
    SparseMoe(int32_t topK, Form const& form)
        : mTopK{topK}
        , mForm{form}
    {
    }

    Form const& form() const noexcept override
    {
        return mForm;
    }

    Status checkSizes(Sizes const& sizes) const override
    {
        int64_t const experts = sizes[Symbol::kNumExperts];
        if (experts != kUnknown && (mTopK > experts || experts > kMoeMaxExperts))
        {
            return Status::failure("SparseMoE: expected 1 <= top_k <= num_experts <= ",
                kMoeMaxExperts, ", got top_k ", mTopK, " and ", experts,
                " experts; correct the node, or rebuild the kernels with a larger MAX_EXPERTS");
        }
        int64_t const multiple = std::string{mForm.variant} == "int4" ? 32 : 16;
        for (Symbol const symbol : {Symbol::kHidden, Symbol::kIntermediate})
        {
            if (sizes[symbol] != kUnknown && sizes[symbol] % multiple != 0)
            {
                return Status::failure("SparseMoE (", mForm.variant, "): ",
                    kSymbolNames[static_cast<size_t>(symbol)], " must be a multiple of ", multiple,
                    ", got ", sizes[symbol], multiple == 32 ? "; use int8" : "; pad the experts");
            }
        }
        return {};
    }

    size_t workspaceBytes(ElementType type, Sizes const& largest) const noexcept override
    {
        MoeShape shape = shapeOf(largest);
        Workspace most{nullptr};
        carve(most, shape, type);
        // a few tokens may take more than many: their products are summed in float32, in parts
        shape.numTokens = std::min<int64_t>(shape.numTokens, kMoeDecodeTokens);
        Workspace decode{nullptr};
        carve(decode, shape, type);
        return std::max(most.used(), decode.used());
    }

    Plan plan(Call const& call) const noexcept override;

    std::vector<Sizes> everyPath(Sizes const& sizes) const override
    {
        std::vector<int64_t> counts{1, kMoeDecodeTokens + 1};
        for (MoeGroupedTile const& each : kMoeGroupedTiles)
        {
            // the fewest that take the next tile
            counts.push_back(ceilDiv(each.slots * sizes[Symbol::kNumExperts] + 1, mTopK));
        }
        std::vector<Sizes> paths;
        for (int64_t const tokens : counts)
        {
            paths.push_back(sizes);
            paths.back()[Symbol::kNumTokens] = tokens;
        }
        return paths;
    }

private:
    enum Input
    {
        kX,
        kRouterLogits,
        kGateUp,
        kDown,
        kGateUpScales,
        kDownScales,
    };

    MoeShape shapeOf(Sizes const& sizes) const noexcept
    {
        return {sizes[Symbol::kNumTokens], sizes[Symbol::kHidden], sizes[Symbol::kIntermediate],
            sizes[Symbol::kNumExperts], mTopK};
    }

    int64_t mTopK;
    Form const& mForm;
};

Plan SparseMoe::plan(Call const& call) const noexcept
{
    MoeShape const shape = shapeOf(call.sizes);
    MoeTile const& tile = selectTile(shape, call.type);
    MoeParts const parts = splitReduction(shape.hidden, shape.intermediate, tile.downColumns);
    Workspace workspace{call.workspace};
    MoeBuffers const between = carve(workspace, shape, call.type);
    void const* const* const in = call.inputs;
    bool const hasScales = mForm.numInputs > kGateUpScales;
    void const* const gateUpScales = hasScales ? in[kGateUpScales] : nullptr;
    void const* const downScales = hasScales ? in[kDownScales] : nullptr;
    char const* const type = typeName(call.type);
    char const* const weights = mForm.variant;
    int64_t const upTiles = ceilDiv(shape.intermediate, tile.gateUpColumns);
    int64_t const downTiles = ceilDiv(shape.hidden, tile.downColumns);
    Plan plan;

    Arguments& route = plan.add(kernelName("route_tokens_%s", type), shape.routeBlocks());
    route.pointer(in[kRouterLogits]).pointer(between.routingWeights);
    route.pointer(between.selectedExperts).pointer(between.blockCounts);
    route.int32(shape.numTokens).int32(shape.numExperts).int32(shape.topK);

    if (shape.isDecode())
    {
        Arguments& up
            = plan.add(kernelName("decode_gate_up_%s_%s_%d", type, weights, tile.rows), upTiles,
                shape.numSlots());
        up.pointer(in[kX]).pointer(between.selectedExperts).pointer(in[kGateUp]);
        up.pointer(gateUpScales).pointer(between.activations);
        up.int32(shape.numTokens).int32(shape.hidden).int32(shape.intermediate).int32(shape.topK);
        Arguments& down = plan.add(kernelName("decode_down_%s_%s_%d", type, weights, tile.rows),
            downTiles, shape.numSlots(), parts.count);
        down.pointer(between.activations).pointer(between.selectedExperts).pointer(in[kDown]);
        down.pointer(downScales).pointer(between.expertOutputs);
        down.int32(shape.numTokens).int32(shape.hidden).int32(shape.intermediate);
        down.int32(shape.topK).int32(parts.length);
    }
    else
    {
        Arguments& sort = plan.add(kernelName("sort_slots_%s", type), shape.routeBlocks());
        sort.pointer(between.selectedExperts).pointer(between.blockCounts);
        sort.pointer(between.sortedSlots).pointer(between.expertEnds);
        sort.int32(shape.numTokens).int32(shape.numExperts).int32(shape.topK);
        int64_t const rows = maxRowTiles(shape, tile.rows);
        Arguments& up = plan.add(
            kernelName("grouped_gate_up_%s_%s_%d", type, weights, tile.rows), rows * upTiles);
        up.pointer(in[kX]).pointer(between.sortedSlots).pointer(between.expertEnds);
        up.pointer(in[kGateUp]).pointer(gateUpScales).pointer(between.activations);
        up.int32(shape.hidden).int32(shape.intermediate).int32(shape.numExperts).int32(shape.topK);
        Arguments& down = plan.add(
            kernelName("grouped_down_%s_%s_%d", type, weights, tile.rows), rows * downTiles);
        down.pointer(between.activations).pointer(between.sortedSlots).pointer(between.expertEnds);
        down.pointer(in[kDown]).pointer(downScales).pointer(between.expertOutputs);
        down.int32(shape.hidden).int32(shape.intermediate).int32(shape.numExperts);
    }

    Arguments& combine = plan.add(
        kernelName("combine_slots_%s_of_%s", type, shape.isDecode() ? "fp32" : type),
        shape.numTokens, ceilDiv(shape.hidden, kMoeCombineColumns));
    combine.pointer(between.expertOutputs).pointer(between.routingWeights).pointer(call.outputs[0]);
    combine.int32(shape.numTokens).int32(shape.hidden).int32(shape.topK);
    combine.int32(shape.isDecode() ? parts.count : 1);
    return plan;
}

Status create(std::vector<FieldValue> const& values, std::shared_ptr<Operator const>& made)
{
    int32_t const topK = values[0].number;
    if (topK < 1)
    {
        return Status::failure("SparseMoE: top_k must be at least 1, got ", topK);
    }
    Form const* const form = findForm("SparseMoE", values[1].text.c_str());
    if (form == nullptr)
    {
        return Status::failure("SparseMoE: weight_format must be none, int8 or int4, got '",
            values[1].text, "'");
    }
    made = std::make_shared<SparseMoe>(topK, *form);
    return {};
}

} // namespace

OperatorType sparseMoeType()
{
    return {"SparseMoE", {{"top_k", FieldKind::kInteger, nullptr},
                             {"weight_format", FieldKind::kText, "none"}},
        create};
}

} // namespace longllava
