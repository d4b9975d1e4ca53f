//! Each quick function, called by code in the cache as the target calls it, against a byte-by-byte model: what it gives and
//! writes, and whether it gave up.

use std::sync::atomic::{AtomicU32, Ordering};

use leakscope_translate::signal::{HandlerScope, take};
use leakscope_translate::{
    Action, BadAccess, CodeKind, CodeRegion, Config, Engine, Fault, Gpr, Guest, Hook, Quick, SHADOW_OFFSET, Tool,
    layout,
};

use super::{LONGEST, code};
use crate::functions::Text;

/// `call rax; ud2`.
const CODE: u64 = 0x0e00_0000;
/// Memory of the target; nothing is mapped around it, but its shadow is.
const DATA: u64 = 0x0d00_0000;
const DATA_BYTES: usize = 0x24000;
const AROUND: u64 = 0x1000;
const STACK: u64 = 0x0d80_0000;
const PSEUDO: u64 = layout::PSEUDO.start + 0x8000;

static GAVE_UP: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn slow(_tool: *mut (), _guest: *mut Guest, _cookie: u64) {
    GAVE_UP.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn on_fault(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: a handler with the kernel's arguments, on the thread that runs the engine.
    unsafe {
        let _scope = HandlerScope::enter();
        take(number, info, context.cast());
    }
}

/// Leaves at the end of the call.
struct Leaver;

impl Tool for Leaver {
    fn syscall(&mut self, _: &mut Engine) -> Action {
        Action::Leave(1)
    }
    fn bad_access(&mut self, _: &mut Engine, _: BadAccess) -> Action {
        Action::Leave(2)
    }
    fn fault(&mut self, engine: &mut Engine, fault: Fault) -> Action {
        let is_end = fault.signal == libc::SIGILL && engine.guest().rip == CODE + 2;
        Action::Leave(if is_end { 0 } else { 3 })
    }
    fn stopped(&mut self, _: &mut Engine) -> Action {
        Action::Leave(4)
    }
    fn replaced(&mut self, _: &mut Engine, _: u64) -> Action {
        Action::Leave(5)
    }
    fn client_request(&mut self, _: &mut Engine) -> Action {
        Action::Leave(6)
    }
    fn code_region(&mut self, address: u64) -> Option<CodeRegion> {
        let (start, end) = (CODE, CODE + 0x1000);
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        (start..end).contains(&address).then_some(CodeRegion { start, end, kind: CodeKind::Fixed, protection })
    }
}

fn map(address: u64, bytes: usize) {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: fails where something is.
    let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
    assert_eq!(at as u64, address, "addresses of this test are free in its process");
}

/// The engine, and the functions at pseudo-addresses.
struct Machine {
    engine: Engine,
}

impl Machine {
    fn new() -> Self {
        // SAFETY: the alternate stack is leaked; the handler takes what the engine's code raises.
        unsafe {
            let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
            let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            assert_eq!(libc::sigaltstack(&alternate, std::ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            action.sa_sigaction = on_fault as *const () as usize;
            for number in [libc::SIGSEGV, libc::SIGILL] {
                assert_eq!(libc::sigaction(number, &action, std::ptr::null_mut()), 0);
            }
        }
        let mut engine = Engine::new(Config::default()).expect("its addresses are free in a test's process");
        map(CODE, 0x1000);
        map(DATA, DATA_BYTES);
        map(STACK, 0x1000);
        map(DATA - AROUND + SHADOW_OFFSET, DATA_BYTES + 2 * AROUND as usize);
        map(STACK + SHADOW_OFFSET - 0x1000, 0x3000);
        // SAFETY: just mapped.
        unsafe { (CODE as *mut [u8; 4]).write([0xff, 0xd0, 0x0f, 0x0b]) };
        engine.set_quick_code(super::range());
        Self { engine }
    }

    /// Calls the function; gives what it returns, or `None` when it gave up.
    fn call(&mut self, text: Text, arguments: [u64; 3]) -> Option<u64> {
        let address = PSEUDO + 16 * text as u64;
        let quick = Quick::Code(code(text).expect("it has a quick version"));
        self.engine.hook_quick(address, Hook { function: slow, quick, cookie: 0 });
        let mut guest = Guest::new();
        guest.rip = CODE;
        guest.set_gpr(Gpr::Rsp, STACK + 0x800);
        guest.set_gpr(Gpr::Rax, address);
        for (register, value) in [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx].into_iter().zip(arguments) {
            guest.set_gpr(register, value);
        }
        for register in [Gpr::Rbx, Gpr::Rbp, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15] {
            guest.set_gpr(register, 0x1111 * register as u64);
        }
        let kept = [Gpr::Rbx, Gpr::Rbp, Gpr::Rsp, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15, Gpr::Rdi, Gpr::Rsi, Gpr::Rdx];
        let before = kept.map(|register| guest.gpr(register));
        self.engine.guest_mut().copy_from(&guest);
        let given_up = GAVE_UP.load(Ordering::Relaxed);
        assert_eq!(self.engine.run(&mut Leaver), Ok(0), "{text:?}{arguments:x?}");
        let guest = self.engine.guest();
        assert_eq!(kept.map(|register| guest.gpr(register)), before, "{text:?}: what a function keeps");
        (GAVE_UP.load(Ordering::Relaxed) == given_up).then(|| guest.gpr(Gpr::Rax))
    }
}

/// A generator of numbers that is the same in every run: xorshift64*.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// The memory as the model has it: byte and shadow, and nothing outside.
struct Memory {
    bytes: Vec<u8>,
    bad: Vec<u64>,
}

/// What a function must do.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// Its work; it may give up all the same if not certain.
    Done { value: u64, is_certain: bool },
    /// Give up.
    GiveUp,
}

impl Memory {
    fn byte(&self, address: u64) -> Option<u8> {
        let offset = usize::try_from(address.checked_sub(DATA)?).ok()?;
        self.bytes.get(offset).copied().filter(|_| !self.bad.contains(&address))
    }

    fn range(&self, address: u64, bytes: u64) -> Option<Vec<u8>> {
        (address..address + bytes).map(|at| self.byte(at)).collect()
    }

    /// What a copy does; writes it into the model.
    fn copy(&mut self, text: Text, [to, from, bytes]: [u64; 3]) -> Wanted {
        let overlaps = to < from + bytes && from < to + bytes;
        let moves = text == Text::Memmove;
        let (Some(_), Some(source)) = (self.range(to, bytes), self.range(from, bytes)) else { return Wanted::GiveUp };
        if overlaps && !moves || bytes > LONGEST {
            return Wanted::GiveUp;
        }
        if bytes > 0 {
            let at = (to - DATA) as usize;
            self.bytes.splice(at..at + bytes as usize, source);
        }
        let value = if text == Text::Mempcpy { to + bytes } else { to };
        Wanted::Done { value, is_certain: !overlaps || bytes <= 64 }
    }

    fn set(&mut self, [to, byte, bytes]: [u64; 3]) -> Wanted {
        if self.range(to, bytes).is_none() || bytes > LONGEST {
            return Wanted::GiveUp;
        }
        if bytes > 0 {
            let at = (to - DATA) as usize;
            self.bytes[at..at + bytes as usize].fill(byte as u8);
        }
        Wanted::Done { value: to, is_certain: true }
    }

    /// Compares up to a length, or a zero; `is_certain` when all of the length can be looked at.
    fn compare(&self, [left, right, bytes]: [u64; 3], ends_at_zero: bool) -> Wanted {
        let whole = self.range(left, bytes).is_some() && self.range(right, bytes).is_some();
        let is_certain = ends_at_zero || whole;
        if bytes > LONGEST && !ends_at_zero {
            return Wanted::GiveUp;
        }
        for at in 0..bytes {
            let (Some(a), Some(b)) = (self.byte(left + at), self.byte(right + at)) else { return Wanted::GiveUp };
            if a != b || ends_at_zero && a == 0 {
                return Wanted::Done { value: (i64::from(a) - i64::from(b)) as u64, is_certain };
            }
        }
        Wanted::Done { value: 0, is_certain }
    }

    fn find(&self, text: Text, [start, wanted, _]: [u64; 3]) -> Wanted {
        let wanted = if text == Text::Strlen { 0 } else { wanted as u8 };
        let mut at = start;
        loop {
            let Some(byte) = self.byte(at) else { return Wanted::GiveUp };
            if byte == wanted || byte == 0 {
                let value = match text {
                    Text::Strlen => at - start,
                    Text::Strchr if byte != wanted => 0,
                    _ => at,
                };
                return Wanted::Done { value, is_certain: true };
            }
            at += 1;
        }
    }

    fn expect(&mut self, text: Text, arguments: [u64; 3]) -> Wanted {
        match text {
            Text::Memcpy | Text::Memmove | Text::Mempcpy => self.copy(text, arguments),
            Text::Memset => self.set(arguments),
            Text::Memcmp => self.compare(arguments, false),
            Text::Strcmp => self.compare([arguments[0], arguments[1], u64::MAX >> 1], true),
            _ => self.find(text, arguments),
        }
    }
}

const TESTED: [Text; 9] = [
    Text::Memcpy,
    Text::Memmove,
    Text::Mempcpy,
    Text::Memset,
    Text::Memcmp,
    Text::Strlen,
    Text::Strchr,
    Text::Strchrnul,
    Text::Strcmp,
];

/// Arguments of a random call, and memory for it.
fn case(numbers: &mut Numbers, memory: &mut Memory) -> [u64; 3] {
    let end = DATA + DATA_BYTES as u64;
    let length = match numbers.below(40) {
        0 => LONGEST - 20 + numbers.below(40),
        1..10 => numbers.below(1000),
        _ => numbers.below(100),
    };
    let room = DATA_BYTES as u64 / 2 - length.min(LONGEST + 64);
    let mut place = |half: u64| match numbers.below(8) {
        // Ends with the memory, or a little behind it, or begins a little before.
        0 => end - length.min(DATA_BYTES as u64 - 64) - numbers.below(3) + numbers.below(4),
        1 => DATA - numbers.below(2),
        2 => DATA + half * DATA_BYTES as u64 / 2 + 0x1000 - numbers.below(40),
        _ => DATA + half * DATA_BYTES as u64 / 2 + numbers.below(room),
    };
    let (first, mut second) = (place(0), place(1));
    if numbers.below(4) == 0 {
        second = first.wrapping_add(numbers.below(80)).wrapping_sub(40);
    }
    // Equal texts, but for a byte now and then, that end somewhere.
    let mut put = |at: u64, byte: u8| {
        if let Some(place) = at.checked_sub(DATA).and_then(|offset| memory.bytes.get_mut(offset as usize)) {
            *place = byte;
        }
    };
    let shown = length.min(300);
    for at in 0..shown {
        let byte = b'a' + (at * 7 % 3) as u8;
        put(first + at, byte);
        put(second + at, byte);
    }
    for side in [first, second] {
        if numbers.below(4) != 0 {
            put(side + shown - numbers.below(2).min(shown), 0);
        }
        if numbers.below(2) == 0 {
            put(side + numbers.below(shown + 1), b'x'.wrapping_add(numbers.below(200) as u8));
        }
    }
    memory.bad.clear();
    if numbers.below(2) == 0 {
        for _ in 0..1 + numbers.below(3) {
            let side = if numbers.below(2) == 0 { first } else { second };
            let near = if numbers.below(2) == 0 { length } else { numbers.below(length + 1) };
            let at = side + near + numbers.below(20) - 10;
            if (DATA..end).contains(&at) {
                memory.bad.push(at);
            }
        }
    }
    [first, second, length]
}

fn write_bytes(address: u64, bytes: &[u8]) {
    // SAFETY: callers name what `Machine::new` mapped.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

/// One test for all: there is one engine in a process.
#[test]
fn quick_functions_do_what_the_model_does_or_give_up() {
    let mut machine = Machine::new();
    let mut numbers = Numbers(0x0BAD_5EED_0000_0001);
    let mut memory = Memory { bytes: vec![b'q'; DATA_BYTES], bad: Vec::new() };
    let (mut done, mut given_up) = ([0u32; TESTED.len()], [0u32; TESTED.len()]);
    for step in 0..9_000 {
        let number = step % TESTED.len();
        let text = TESTED[number];
        let mut arguments = case(&mut numbers, &mut memory);
        if matches!(text, Text::Memset | Text::Strchr | Text::Strchrnul) {
            arguments[1] = u64::from(b'a' + numbers.below(30) as u8) | numbers.below(9) << 8;
        }
        write_bytes(DATA, &memory.bytes);
        for &at in &memory.bad {
            write_bytes(at + SHADOW_OFFSET, &[0xff]);
        }
        let wanted = memory.expect(text, arguments);
        let found = machine.call(text, arguments);
        for &at in &memory.bad {
            write_bytes(at + SHADOW_OFFSET, &[0]);
        }
        let shown = format!("step {step}: {text:?}{arguments:x?}, bad {:x?}", memory.bad);
        match (&wanted, found) {
            (&Wanted::Done { value, .. }, Some(found)) => {
                assert_eq!(found, value, "{shown}");
                // SAFETY: mapped, and nobody writes to it meanwhile.
                let bytes = unsafe { std::slice::from_raw_parts(DATA as *const u8, DATA_BYTES) };
                let differs = bytes.iter().zip(&memory.bytes).position(|(is, should)| is != should);
                assert_eq!(differs, None, "{shown}");
                done[number] += 1;
            }
            (Wanted::Done { is_certain: true, .. }, None) => panic!("{shown}: gave up for nothing"),
            (Wanted::GiveUp, Some(found)) => panic!("{shown}: gave {found:x} and should have given up"),
            (_, None) => given_up[number] += 1,
        }
    }
    for (number, text) in TESTED.iter().enumerate() {
        assert!(
            done[number] > 100 && given_up[number] > 50,
            "{text:?}: {} done, {} given up",
            done[number],
            given_up[number]
        );
    }
}
