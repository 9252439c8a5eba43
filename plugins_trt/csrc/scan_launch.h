// What SelectiveScan and MambaScan share: one kernel for few tokens, else launches of a scan over many,
// which mirror plan_scan_chunks in plugins_trt/launch_plans/mixers.py. Must not know TensorRT.
#pragma once

#include "operator.h"

namespace longllava
{

//! An operator that carries a recurrent state, its last input, to its second output.
class ScanOperator : public Operator
{
public:
    Plan plan(Call const& call) const noexcept final;

    std::vector<Sizes> everyPath(Sizes const& sizes) const override;

    bool mayAlias(Sizes const& sizes, int32_t input, int32_t output) const noexcept final;

private:
    //! Append the launches for up to kStepTokens tokens.
    virtual void planStep(Call const& call, Plan& plan) const noexcept = 0;

    //! Append the launches for more.
    virtual void planChunks(Call const& call, Plan& plan) const noexcept = 0;
};

//! What the kernels read and write. Named as their arguments.
struct ScanTensors
{
    void const* u;
    void const* dt;
    void const* aLog;
    void const* b;
    void const* c;
    void const* d;
    void const* z;
    void const* dtBias;
    void const* state;
    void* y;
    void* stateOut;
    //! Elements from one token of z to the next.
    int64_t zRow;
};

//! Refuse another d_state than the kernels were compiled for.
Status checkDState(char const* opType, Sizes const& sizes);

//! Bytes that every scan with at most these sizes finds enough.
size_t scanWorkspaceBytes(Sizes const& largest) noexcept;

//! Append the launches of a scan over more than kStepTokens tokens.
void planScanChunks(ElementType type, Sizes const& sizes, ScanTensors const& tensors,
    Workspace& workspace, Plan& plan) noexcept;

} // namespace longllava
