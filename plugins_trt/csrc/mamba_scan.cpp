// MambaScan: launch arithmetic. Mirrors plan_mamba_scan in plugins_trt/launch_plans/mamba_scan.py; the
// constants come from there through generated.h. Must not know TensorRT.
#include "scan_launch.h"

#include <cstring>

namespace longllava
{

namespace
{

//! The buffers between the kernels, T.
struct Between
{
    void* dtLow;
    void* b;
    void* c;
    void* dt;
};

Between carve(Workspace& workspace, ElementType type, Sizes const& sizes) noexcept
{
    int64_t const column = sizes[Symbol::kBatch] * sizes[Symbol::kSeqLen] * itemSize(type);
    Between between{};
    between.dtLow = workspace.take(column * sizes[Symbol::kDtRank]);
    between.b = workspace.take(column * kCompiledDState);
    between.c = workspace.take(column * kCompiledDState);
    between.dt = workspace.take(column * sizes[Symbol::kDInner]);
    return between;
}

//! The end of the names of kernels that are compiled twice, by the sizes that they look at.
char const* sizeSuffix(int64_t dtRank, int64_t other) noexcept
{
    return dtRank % kMambaAligned == 0 && other % kMambaAligned == 0 ? "" : "_any_size";
}

//! The gate: the second half of the first row.
void const* secondHalf(void const* xz, int64_t dInner, ElementType type) noexcept
{
    return reinterpret_cast<void const*>(
        reinterpret_cast<uintptr_t>(xz) + static_cast<uintptr_t>(dInner * itemSize(type)));
}

class MambaScan final : public ScanOperator
{
public:
    explicit MambaScan(float eps)
    {
        std::memcpy(&mEpsBits, &eps, sizeof mEpsBits);
    }

    Form const& form() const noexcept override
    {
        static Form const& found = *findForm("MambaScan", "");
        return found;
    }

    Status checkSizes(Sizes const& sizes) const override
    {
        int64_t const width = sizes[Symbol::kDtBC];
        int64_t const dtRank = sizes[Symbol::kDtRank];
        if (width != kUnknown && dtRank != kUnknown && width != dtRank + 2 * kCompiledDState)
        {
            return Status::failure("MambaScan: 'projected' must have dt_rank + 2 * d_state = ",
                dtRank + 2 * kCompiledDState, " columns, got ", width,
                "; the tensors of one node must agree");
        }
        return checkDState("MambaScan", sizes);
    }

    size_t workspaceBytes(ElementType type, Sizes const& largest) const noexcept override
    {
        if (largest[Symbol::kSeqLen] <= kStepTokens)
        {
            return 0;
        }
        Workspace workspace{nullptr};
        carve(workspace, type, largest);
        return workspace.used() + scanWorkspaceBytes(largest);
    }

private:
    enum Input
    {
        kU,
        kProjected,
        kDtNormWeight,
        kBNormWeight,
        kCNormWeight,
        kDtProjWeight,
        kDtBias,
        kALog,
        kD,
        kXz,
        kState,
    };

    void planStep(Call const& call, Plan& plan) const noexcept override
    {
        int64_t const dInner = call.sizes[Symbol::kDInner];
        int64_t const dtRank = call.sizes[Symbol::kDtRank];
        Arguments& arguments = plan.add(
            kernelName("mamba_step_%s%s", typeName(call.type), sizeSuffix(dtRank, dInner)),
            ceilDiv(dInner, kScanStepChannels), call.sizes[Symbol::kBatch]);
        for (int32_t input = kU; input <= kState; ++input)
        {
            arguments.pointer(call.inputs[input]);
        }
        arguments.pointer(call.outputs[0]).pointer(call.outputs[1]);
        arguments.int32(call.sizes[Symbol::kSeqLen]).int32(dInner).int32(dtRank).int32(mEpsBits);
    }

    void planChunks(Call const& call, Plan& plan) const noexcept override
    {
        void const* const* const in = call.inputs;
        int64_t const dInner = call.sizes[Symbol::kDInner];
        Workspace workspace{call.workspace};
        Between const between = carve(workspace, call.type, call.sizes);
        planNorms(call, between, plan);
        planProduct(call, between, plan);
        ScanTensors const tensors{in[kU], between.dt, in[kALog], between.b, between.c, in[kD],
            secondHalf(in[kXz], dInner, call.type), in[kDtBias], in[kState], call.outputs[0],
            call.outputs[1], 2 * dInner};
        planScanChunks(call.type, call.sizes, tensors, workspace, plan);
    }

    void planNorms(Call const& call, Between const& between, Plan& plan) const noexcept
    {
        int64_t const dtRank = call.sizes[Symbol::kDtRank];
        char const* const suffix = sizeSuffix(dtRank, kCompiledDState);
        Arguments& arguments
            = plan.add(kernelName("norm_dt_b_c_%s%s", typeName(call.type), suffix),
                call.sizes[Symbol::kBatch] * call.sizes[Symbol::kSeqLen]);
        for (int32_t input = kProjected; input <= kCNormWeight; ++input)
        {
            arguments.pointer(call.inputs[input]);
        }
        arguments.pointer(between.dtLow).pointer(between.b).pointer(between.c);
        arguments.int32(mEpsBits).int32(dtRank).int32(kCompiledDState);
    }

    static void planProduct(Call const& call, Between const& between, Plan& plan) noexcept
    {
        MambaTile const& tile
            = call.type == ElementType::kFloat32 ? kMambaTile32 : kMambaTile16;
        int64_t const rows = call.sizes[Symbol::kBatch] * call.sizes[Symbol::kSeqLen];
        int64_t const dInner = call.sizes[Symbol::kDInner];
        int64_t const dtRank = call.sizes[Symbol::kDtRank];
        Arguments& arguments = plan.add(
            kernelName("project_dt_%s%s", typeName(call.type), sizeSuffix(dtRank, dInner)),
            ceilDiv(rows, tile.rows), ceilDiv(dInner, tile.columns));
        arguments.pointer(between.dtLow).pointer(call.inputs[kDtProjWeight]).pointer(between.dt);
        arguments.int32(rows).int32(dInner).int32(dtRank);
    }

    //! Of a float32, which kernels take as an integer.
    int32_t mEpsBits;
};

Status create(std::vector<FieldValue> const& values, std::shared_ptr<Operator const>& made)
{
    float const eps = values[0].real;
    if (!(eps >= 0.0F))
    {
        return Status::failure("MambaScan: eps must be at least 0, got ", eps);
    }
    made = std::make_shared<MambaScan>(eps);
    return {};
}

} // namespace

OperatorType mambaScanType()
{
    return {"MambaScan", {{"eps", FieldKind::kReal, nullptr}}, create};
}

} // namespace longllava
