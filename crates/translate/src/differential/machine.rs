//! Runs code natively and translated from the same state. Native code is entered and left like the cache: the state page
//! gives it its registers, and the signal at its end brings it to the exit code.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::signal::{HandlerScope, Taken};
use crate::state::{FaultSlot, state};
use crate::vectors::Vectors;
use crate::{
    Action, BadAccess, CodeKind, CodeRegion, Config, Engine, Fault, Gpr, Guest, SHADOW_OFFSET, Tool, entry, exits,
    memory, signal,
};

/// Where the code under test lies, below 2 GB and above.
pub const CODE: u64 = 0x0e00_0000;
pub const HIGH_CODE: u64 = 0x0e0e_0000_0000;
pub const CODE_BYTES: usize = 0x4000;
/// Memory that it may use.
pub const DATA: u64 = 0x0d00_0000;
pub const DATA_BYTES: usize = 0x8000;
/// Memory that code above 2 GB reaches relative to RIP.
pub const HIGH_DATA: u64 = HIGH_CODE + 0x2000;
/// An address where nothing is mapped.
pub const NOWHERE: u64 = 0x0123_4567_8000;
/// Ranges that have a shadow: what the tests touch. All of it would run into the test's own executable.
const SHADOWED: [(u64, usize); 3] =
    [(0, 1 << 32), (HIGH_CODE - 0x10_0000, 0x20_0000), (NOWHERE - 0x10_0000, 0x20_0000)];
const INT3: u8 = 0xcc;

static NATIVE: AtomicBool = AtomicBool::new(false);
/// Named when the test process dies.
pub static SEED: AtomicU64 = AtomicU64::new(0);
static ONE_ENGINE: Mutex<()> = Mutex::new(());

/// What a run ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub fault: Fault,
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub x87: Vec<u8>,
    pub mxcsr: u32,
    pub vectors: Vec<[u8; 64]>,
    pub masks: [u64; 8],
    pub data: Vec<u8>,
}

/// The engine with memory for tests; one at a time.
pub struct Machine {
    pub engine: Engine,
    pub tool: Recorder,
    _alone: MutexGuard<'static, ()>,
}

/// The tool of the tests: records, and leaves at the first signal.
#[derive(Default)]
pub struct Recorder {
    pub bad: Vec<BadAccess>,
    pub fault: Option<Fault>,
    pub stops: u64,
    pub stopped_at: Vec<(u64, [u64; 16], u64)>,
    pub requests: u64,
    pub calls: Vec<u64>,
    pub kind: Option<CodeKind>,
    pub not_code: bool,
}

impl Tool for Recorder {
    fn syscall(&mut self, engine: &mut Engine) -> Action {
        let number = engine.guest().gpr(Gpr::Rax);
        self.calls.push(number);
        engine.guest_mut().set_gpr(Gpr::Rax, number + 1);
        Action::Continue
    }

    fn bad_access(&mut self, _engine: &mut Engine, access: BadAccess) -> Action {
        self.bad.push(access);
        Action::Continue
    }

    fn fault(&mut self, _engine: &mut Engine, fault: Fault) -> Action {
        self.fault = Some(fault);
        Action::Leave(1)
    }

    fn stopped(&mut self, engine: &mut Engine) -> Action {
        self.stops += 1;
        let guest = engine.guest();
        self.stopped_at.push((guest.rip, guest.gpr, guest.rflags));
        Action::Continue
    }

    fn replaced(&mut self, engine: &mut Engine, cookie: u64) -> Action {
        self.calls.push(cookie);
        // SAFETY: the test called it with a stack.
        unsafe { engine.guest_mut().return_to_caller() };
        Action::Continue
    }

    fn client_request(&mut self, engine: &mut Engine) -> Action {
        self.requests += 1;
        engine.guest_mut().set_gpr(Gpr::Rdx, 0x1234);
        Action::Continue
    }

    fn code_region(&mut self, address: u64) -> Option<CodeRegion> {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let kind = self.kind.unwrap_or(CodeKind::Fixed);
        let found = [CODE, HIGH_CODE]
            .into_iter()
            .find(|&start| (start..start + CODE_BYTES as u64).contains(&address))
            .filter(|_| !self.not_code)?;
        Some(CodeRegion { start: found, end: found + CODE_BYTES as u64, kind, protection })
    }
}

unsafe extern "C" fn handler(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: a signal handler with the kernel's arguments, on the thread that holds the machine.
    unsafe {
        let _scope = HandlerScope::enter();
        if NATIVE.load(Ordering::Relaxed) {
            leave_native(number, info, context);
        } else if signal::take(number, info, context) == Taken::NotGuest {
            let at = (*context).uc_mcontext.gregs[libc::REG_RIP as usize];
            eprintln!("seed {}: signal {number} at {at:x}, outside of the cache", SEED.load(Ordering::Relaxed));
            libc::abort();
        }
    }
}

pub unsafe fn leave_native(number: i32, info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: as in `handler`.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        (*state()).fault = FaultSlot {
            signal: number,
            code: (*info).si_code,
            address: (*info).si_addr() as u64,
            trap: registers[libc::REG_TRAPNO as usize] as u64,
            error: registers[libc::REG_ERR as usize] as u64,
            host_pc: 0,
        };
        (*state()).exit_record = exits::FAULT;
        (*state()).guest.rip = registers[libc::REG_RIP as usize] as u64;
        registers[libc::REG_EFL as usize] &= !0x1_0000;
        registers[libc::REG_RIP as usize] = entry::labels().exit as i64;
    }
}

/// Installs the handler for this thread's alternate stack.
fn install() {
    // SAFETY: the stack is leaked, so it lives as long as the handlers.
    unsafe {
        let stack = Box::leak(vec![0u8; 1 << 17].into_boxed_slice());
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        action.sa_sigaction = handler as *const () as usize;
        for number in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            assert_eq!(libc::sigaction(number, &action, std::ptr::null_mut()), 0);
        }
    }
}

impl Machine {
    pub fn new(config: Config) -> Self {
        let alone = ONE_ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        install();
        let engine = Engine::new(config).expect("the engine's addresses are free in a test process");
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        memory::map("code", CODE, CODE_BYTES, all).unwrap();
        memory::map("code above 2 GB", HIGH_CODE, CODE_BYTES, all).unwrap();
        memory::map("data", DATA, DATA_BYTES, libc::PROT_READ | libc::PROT_WRITE).unwrap();
        for (start, bytes) in SHADOWED {
            memory::map("shadow", start + SHADOW_OFFSET, bytes, libc::PROT_READ | libc::PROT_WRITE).unwrap();
        }
        Self { engine, tool: Recorder::default(), _alone: alone }
    }

    /// Writes code, ended by `int3`.
    pub fn put_code(&mut self, start: u64, code: &[u8]) {
        assert!(code.len() < (HIGH_DATA - HIGH_CODE) as usize - 16);
        self.engine.mapping_changed(start, start + CODE_BYTES as u64);
        // SAFETY: mapped in `new`.
        unsafe {
            memory::put(start, code);
            memory::put(start + code.len() as u64, &[INT3; 16]);
        }
    }

    pub fn put_data(&mut self, data: &[u8]) {
        // SAFETY: mapped in `new`.
        unsafe { memory::put(DATA, data) };
    }

    /// The same above 2 GB.
    pub fn put_high_data(&mut self, data: &[u8]) {
        // SAFETY: mapped in `new`.
        unsafe { memory::put(HIGH_DATA, data) };
    }

    /// Sets the shadow of some of the target's bytes.
    pub fn put_shadow(&mut self, address: u64, shadow: &[u8]) {
        // SAFETY: mapped in `new`.
        unsafe { memory::put(address + SHADOW_OFFSET, shadow) };
    }

    /// The shadow of a range.
    pub fn shadow(&self, start: u64, end: u64) -> Vec<u8> {
        // SAFETY: mapped in `new`.
        unsafe { memory::code(start + SHADOW_OFFSET, end + SHADOW_OFFSET) }.to_vec()
    }

    /// Runs from this state on the processor.
    pub fn run_native(&mut self, guest: &Guest) -> Outcome {
        self.engine.guest_mut().copy_from(guest);
        // SAFETY: the code ends in a signal, which `handler` takes; GS base is this thread's to change.
        unsafe {
            std::arch::asm!("wrgsbase {}", in(reg) guest.gs_base, options(nostack));
            NATIVE.store(true, Ordering::Relaxed);
            entry::enter(guest.rip);
            NATIVE.store(false, Ordering::Relaxed);
        }
        // SAFETY: the handler filled it.
        let slot = unsafe { (*state()).fault };
        self.outcome(Fault {
            signal: slot.signal,
            code: slot.code,
            address: slot.address,
            trap: slot.trap,
            error: slot.error,
        })
    }

    /// Runs from this state in the engine.
    pub fn run_translated(&mut self, guest: &Guest) -> Outcome {
        self.engine.guest_mut().copy_from(guest);
        self.tool.fault = None;
        self.engine.run(&mut self.tool).expect("translation");
        let fault = self.tool.fault.expect("a run ends with a signal");
        self.outcome(fault)
    }

    fn outcome(&self, fault: Fault) -> Outcome {
        let guest = self.engine.guest();
        let vectors = Vectors::new(guest);
        let mut x87 = guest.xsave[..160].to_vec();
        // The last instruction's opcode and address are the cache's; mxcsr stands beside.
        x87[6..24].fill(0);
        x87[24..32].fill(0);
        // SAFETY: mapped in `new`.
        let mut data = unsafe { memory::code(DATA, DATA + DATA_BYTES as u64) }.to_vec();
        // SAFETY: as above.
        data.extend_from_slice(unsafe { memory::code(HIGH_DATA, HIGH_DATA + 0x200) });
        Outcome {
            fault,
            gpr: guest.gpr,
            rip: guest.rip,
            rflags: guest.rflags,
            x87,
            mxcsr: u32::from_le_bytes(*guest.xsave[24..28].first_chunk().unwrap()),
            vectors: (0..32).map(|number| vectors.register(number)).collect(),
            masks: std::array::from_fn(|number| vectors.opmask(number)),
            data,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        memory::unmap(CODE, CODE_BYTES);
        memory::unmap(HIGH_CODE, CODE_BYTES);
        memory::unmap(DATA, DATA_BYTES);
        for (start, bytes) in SHADOWED {
            memory::unmap(start + SHADOW_OFFSET, bytes);
        }
    }
}

/// Says where two outcomes differ; flags outside of `flags` do not count.
pub fn difference(native: &Outcome, translated: &Outcome, flags: u64) -> Option<String> {
    let mut list = Vec::new();
    if native.fault != translated.fault {
        list.push(format!("signal {:x?} / {:x?}", native.fault, translated.fault));
    }
    if native.rip != translated.rip {
        list.push(format!("rip {:x} / {:x}", native.rip, translated.rip));
    }
    for number in 0..16 {
        if native.gpr[number] != translated.gpr[number] {
            list.push(format!("gpr {number} {:x} / {:x}", native.gpr[number], translated.gpr[number]));
        }
    }
    if (native.rflags ^ translated.rflags) & flags != 0 {
        list.push(format!("flags {:x} / {:x}, compared {flags:x}", native.rflags, translated.rflags));
    }
    for number in 0..32 {
        if native.vectors[number] != translated.vectors[number] {
            list.push(format!("zmm{number} {:02x?} / {:02x?}", native.vectors[number], translated.vectors[number]));
        }
    }
    if native.masks != translated.masks {
        list.push(format!("masks {:x?} / {:x?}", native.masks, translated.masks));
    }
    if native.x87 != translated.x87 || native.mxcsr != translated.mxcsr {
        list.push(format!("x87 {:02x?} / {:02x?}", native.x87, translated.x87));
        list.push(format!("mxcsr {:x} / {:x}", native.mxcsr, translated.mxcsr));
    }
    if let Some(at) = (0..native.data.len()).find(|&at| native.data[at] != translated.data[at]) {
        list.push(format!("memory at +{at:x}: {:02x} / {:02x}", native.data[at], translated.data[at]));
    }
    (!list.is_empty()).then(|| list.join("\n"))
}
