//! What the machine must have, and what of it the target may see.

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use crate::{Cpuid, Error};

/// Bit of `AT_HWCAP2`: the kernel allows `wrfsbase` and `wrgsbase`. Source: Linux, `arch/x86/include/uapi/asm/hwcap2.h`.
const HWCAP2_FSGSBASE: u64 = 2;

/// Leaf 7, subleaf 0, ebx: HLE, RTM.
const TRANSACTIONS: u32 = 1 << 4 | 1 << 11;
/// Leaf 7, subleaf 0, ebx: everything that begins with AVX-512.
const AVX512_EBX: u32 = 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
/// The same in ecx: VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
const AVX512_ECX: u32 = 1 << 1 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 14;
/// The same in edx: 4VNNIW, 4FMAPS, VP2INTERSECT, FP16.
const AVX512_EDX: u32 = 1 << 2 | 1 << 3 | 1 << 8 | 1 << 23;
/// Leaf 7, subleaf 0, ecx: shadow stacks, which a translated `ret` would not keep; OSPKE stays.
const SHADOW_STACK: u32 = 1 << 7;
/// edx: AMX in its three parts, RTM_ALWAYS_ABORT and indirect-branch tracking.
const HIDDEN_EDX: u32 = 1 << 22 | 1 << 24 | 1 << 25 | 1 << 11 | 1 << 20;
/// Subleaf 1, eax: AVX512_BF16, FRED, LKGS, AMX-FP16.
const HIDDEN_1_EAX: u32 = 1 << 17 | 1 << 18 | 1 << 21;
const AVX512_BF16: u32 = 1 << 5;
/// Subleaf 1, edx: AVX10, APX, which iced does not decode, user-level MSRs.
const HIDDEN_1_EDX: u32 = 1 << 19 | 1 << 21 | 1 << 15;

/// Refuses machines without XSAVE or FSGSBASE.
pub(crate) fn require() -> Result<(), Error> {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return Err(Error::Unsupported("XSAVE"));
    }
    // SAFETY: reads the auxiliary vector.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if hwcap2 & HWCAP2_FSGSBASE == 0 {
        return Err(Error::Unsupported("FSGSBASE in user mode (Linux 5.9)"));
    }
    Ok(())
}

/// The machine's answer less what the engine cannot run.
pub(crate) fn runnable(leaf: u32, subleaf: u32, native: CpuidResult, avx512: bool) -> Cpuid {
    let mut shown = Cpuid { eax: native.eax, ebx: native.ebx, ecx: native.ecx, edx: native.edx };
    match (leaf, subleaf) {
        (7, 0) => {
            shown.ebx &= !TRANSACTIONS;
            shown.ecx &= !SHADOW_STACK;
            shown.edx &= !HIDDEN_EDX;
            if !avx512 {
                shown.ebx &= !AVX512_EBX;
                shown.ecx &= !AVX512_ECX;
                shown.edx &= !AVX512_EDX;
            }
        }
        (7, 1) => {
            shown.eax &= !HIDDEN_1_EAX;
            shown.edx &= !HIDDEN_1_EDX;
            if !avx512 {
                shown.eax &= !AVX512_BF16;
            }
        }
        // State components: only those that are kept.
        (0xd, 0) => {
            shown.eax &= 0xe7 | 1 << 9;
            shown.ecx = shown.ecx.min(__cpuid_count(0xd, 0).ebx);
            shown.edx = 0;
        }
        _ => {}
    }
    shown
}
