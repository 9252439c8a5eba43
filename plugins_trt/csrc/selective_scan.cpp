// SelectiveScan: launch arithmetic. Mirrors plan_selective_scan in plugins_trt/launch_plans/mixers.py;
// the constants come from there through generated.h. Must not know TensorRT.
#include "scan_launch.h"

namespace longllava
{

namespace
{

class SelectiveScan final : public ScanOperator
{
public:
    Form const& form() const noexcept override
    {
        static Form const& found = *findForm("SelectiveScan", "");
        return found;
    }

    Status checkSizes(Sizes const& sizes) const override
    {
        return checkDState("SelectiveScan", sizes);
    }

    size_t workspaceBytes(ElementType, Sizes const& largest) const noexcept override
    {
        return scanWorkspaceBytes(largest);
    }

    std::vector<Sizes> everyPath(Sizes const& sizes) const override
    {
        // the same kernels for every number of channels, which may not be known yet
        Sizes known = sizes;
        known[Symbol::kDInner] = 1;
        return ScanOperator::everyPath(known);
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

    void planStep(Call const& call, Plan& plan) const noexcept override
    {
        int64_t const dInner = call.sizes[Symbol::kDInner];
        Arguments& arguments = plan.add(kernelName("scan_step_%s", typeName(call.type)),
            ceilDiv(dInner, kScanStepChannels), call.sizes[Symbol::kBatch]);
        for (int32_t input = kU; input <= kState; ++input)
        {
            arguments.pointer(call.inputs[input]);
        }
        arguments.pointer(call.outputs[0]).pointer(call.outputs[1]);
        arguments.int32(call.sizes[Symbol::kSeqLen]).int32(dInner).int32(dInner);
    }

    void planChunks(Call const& call, Plan& plan) const noexcept override
    {
        void const* const* const in = call.inputs;
        ScanTensors const tensors{in[kU], in[kDt], in[kALog], in[kB], in[kC], in[kD], in[kZ],
            in[kDtBias], in[kState], call.outputs[0], call.outputs[1], call.sizes[Symbol::kDInner]};
        Workspace workspace{call.workspace};
        planScanChunks(call.type, call.sizes, tensors, workspace, plan);
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
