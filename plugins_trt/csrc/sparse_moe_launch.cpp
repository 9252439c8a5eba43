// The arithmetic of SparseMoE's launches. See sparse_moe_launch.h; tiles and other constants come
// from Python through generated.h.
#include "sparse_moe_launch.h"

#include <algorithm>

namespace longllava
{

MoeTile const& selectTile(MoeShape const& shape, ElementType type) noexcept
{
    if (shape.isDecode())
    {
        return kMoeDecode;
    }
    if (type == ElementType::kFloat32)
    {
        return kMoeGroupedFloat32;
    }
    for (MoeGroupedTile const& each : kMoeGroupedTiles)
    {
        if (shape.numSlots() <= each.slots * shape.numExperts)
        {
            return each.tile;
        }
    }
    return kMoeGrouped128;
}

MoeParts splitReduction(int64_t hidden, int64_t intermediate, int64_t columns) noexcept
{
    int64_t const groups = ceilDiv(intermediate, 128);
    int64_t parts = 1;
    while (parts < 8 && ceilDiv(hidden, columns) * parts < 512 && groups >= 16 * parts)
    {
        parts *= 2;
    }
    int64_t const length = ceilDiv(groups, parts) * 128;
    return {ceilDiv(intermediate, length), length};
}

int64_t maxRowTiles(MoeShape const& shape, int64_t rows) noexcept
{
    int64_t const slots = shape.numSlots();
    // an expert of n rows takes at most (n + rows - 1) / rows tiles
    return std::min(slots, (slots + shape.numExperts * (rows - 1)) / rows);
}

MoeBuffers carve(Workspace& workspace, MoeShape const& shape, ElementType type) noexcept
{
    int64_t const item = itemSize(type);
    int64_t const slots = shape.numSlots();
    MoeBuffers between{};
    between.routingWeights = workspace.take(slots * item);
    between.selectedExperts = workspace.take(slots * 4);
    between.blockCounts = workspace.take(shape.routeBlocks() * shape.numExperts * 4);
    if (shape.isDecode())
    {
        MoeParts const parts
            = splitReduction(shape.hidden, shape.intermediate, kMoeDecode.downColumns);
        between.activations = workspace.take(slots * shape.intermediate * item);
        between.expertOutputs = workspace.take(parts.count * slots * shape.hidden * 4);
        return between;
    }
    between.sortedSlots = workspace.take(slots * 4);
    between.expertEnds = workspace.take(shape.numExperts * 4);
    between.activations = workspace.take(slots * shape.intermediate * item);
    between.expertOutputs = workspace.take(slots * shape.hidden * item);
    return between;
}

} // namespace longllava
