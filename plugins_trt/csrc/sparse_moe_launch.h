// SparseMoE: the arithmetic of its launches: tiles, grids' factors, workspace.
// Mirrors plugins_trt/launch_plans/sparse_moe.py. Must not know TensorRT, nor kernels' arguments.
#pragma once

#include "form.h"
#include "launch.h"

namespace longllava
{

struct MoeShape
{
    int64_t numTokens;
    int64_t hidden;
    int64_t intermediate;
    int64_t numExperts;
    int64_t topK;

    //! Pairs of a token and one of its experts.
    int64_t numSlots() const noexcept
    {
        return numTokens * topK;
    }

    int64_t routeBlocks() const noexcept
    {
        return ceilDiv(numTokens, kMoeRouteTokens);
    }

    //! Whether the path for few tokens runs.
    bool isDecode() const noexcept
    {
        return numTokens <= kMoeDecodeTokens;
    }
};

//! Decode, or the grouped tile that an average expert fills.
MoeTile const& selectTile(MoeShape const& shape, ElementType type) noexcept;

//! How the decode path splits its second product.
struct MoeParts
{
    int64_t count;
    //! The last may be shorter.
    int64_t length;
};
MoeParts splitReduction(int64_t hidden, int64_t intermediate, int64_t columns) noexcept;

//! The most tiles of so many rows that any routing can need.
int64_t maxRowTiles(MoeShape const& shape, int64_t rows) noexcept;

//! The buffers between the kernels; the sorted ones are of the grouped path alone.
struct MoeBuffers
{
    void* routingWeights;
    void* selectedExperts;
    void* blockCounts;
    void* sortedSlots;
    void* expertEnds;
    void* activations;
    void* expertOutputs;
};
MoeBuffers carve(Workspace& workspace, MoeShape const& shape, ElementType type) noexcept;

} // namespace longllava
