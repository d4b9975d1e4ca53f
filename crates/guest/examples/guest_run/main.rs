//! Runs a program under the kernel interface, for tests and for looking at things by hand.
//!
//! `guest_run [--native] [--checks] [--children] [--verify] [--statistics] [--argv0 NAME] PROGRAM ARGUMENTS`. `--native`: the program's instructions run on the
//! processor itself and only its system calls are caught, so that an error of the interface can be told from one of the
//! translation. `--children`: programs that it executes run in the same way. `--verify`: at the end, the list of mappings
//! is compared with the kernel's, and what the monitor was told with the list; the status is 99 if they differ.
//! `--checks`: translated code looks everything up in a shadow that is all zero.
//!
//! Has to be a static executable at a fixed address: `crates/guest/examples/build.sh` builds it.
#![no_main]

mod loader;
mod native;

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;

use leakscope_guest::{Cpu, Ending, ExecPlan, ExecRequest, Mapping, Monitor, Process, Setup, Space, View};
use leakscope_translate::{AccessKind, Action, BadAccess, Config, Engine, GUEST_END, SHADOW_OFFSET};

/// Options, as they are passed on to children.
#[derive(Clone, Default)]
struct Options {
    native: bool,
    checks: bool,
    children: bool,
    verify: bool,
    statistics: bool,
    argv0: Option<CString>,
}

struct Runner {
    options: Options,
    engine: Vec<u8>,
    view: Option<View>,
    /// The mappings, as the calls of `Monitor` tell them.
    told: Space,
}

impl Runner {
    /// Whether the list of mappings is the kernel's: each of its pages that is not the engine's, with its protection.
    fn verify(&self) -> bool {
        let Some(view) = self.view.filter(|_| self.options.verify) else { return true };
        let text = std::fs::read_to_string("/proc/thread-self/maps").unwrap_or_default();
        let mut is_right = view.space().iter().eq(self.told.iter());
        if !is_right {
            eprintln!("guest_run: the monitor was told {:x?}, the list is {:x?}", self.told, view.space());
        }
        let mut kernel_bytes = 0;
        for line in text.lines() {
            let (range, rights) = line.split_once(' ').unwrap_or_default();
            let (start, end) = range.split_once('-').unwrap_or_default();
            let number = |digits| u64::from_str_radix(digits, 16).unwrap_or(u64::MAX);
            let (start, end) = (number(start), number(end));
            if start >= GUEST_END || view.space().is_reserved(start, end) {
                continue;
            }
            kernel_bytes += end - start;
            let rights = rights.as_bytes();
            let protection =
                i32::from(rights[0] == b'r') | i32::from(rights[1] == b'w') << 1 | i32::from(rights[2] == b'x') << 2;
            let mut at = start;
            for mapping in view.space().within(start, end) {
                // Translated pages that the target may write to are write-protected meanwhile.
                let ignored = if mapping.protection & 4 != 0 { 2 } else { 0 };
                if mapping.start > at || (mapping.protection ^ protection) & !ignored != 0 {
                    eprintln!("guest_run: the kernel has {line}, the list {mapping:x?}");
                    is_right = false;
                }
                at = mapping.end;
            }
            if at < end {
                eprintln!("guest_run: the kernel has {line}, the list ends at {at:#x}");
                is_right = false;
            }
        }
        if kernel_bytes != view.space().mapped_bytes() {
            eprintln!("guest_run: {kernel_bytes:#x} bytes mapped, {:#x} in the list", view.space().mapped_bytes());
            is_right = false;
        }
        is_right
    }
}

impl<C: Cpu + Counts> Monitor<C> for Runner {
    fn started(&mut self, _: &mut C, view: View) {
        self.view = Some(view);
        view.space().iter().cloned().for_each(|mapping| self.told.record(mapping));
    }

    fn mapped(&mut self, _: &mut C, mapping: &Mapping) {
        self.told.record(mapping.clone());
    }

    fn unmapped(&mut self, _: &mut C, start: u64, end: u64) {
        self.told.remove(start, end);
    }

    fn protected(&mut self, _: &mut C, start: u64, end: u64, protection: i32) {
        self.told.protect(start, end, protection);
    }

    fn bad_access(&mut self, _: &mut C, access: BadAccess) -> Action {
        // Execution of memory that must not be: a fault follows. Anything else cannot be with this shadow.
        if access.kind != AccessKind::Execute {
            eprintln!("guest_run: {access:x?}");
        }
        Action::Continue
    }

    fn exec(&mut self, _: &mut C, request: &ExecRequest<'_>) -> ExecPlan {
        if !self.options.children {
            return ExecPlan::Native;
        }
        let mut arguments = vec![self.engine.clone(), b"--children".to_vec()];
        if self.options.native {
            arguments.push(b"--native".to_vec());
        }
        if self.options.checks {
            arguments.push(b"--checks".to_vec());
        }
        if self.options.verify {
            arguments.push(b"--verify".to_vec());
        }
        arguments.push(b"--argv0".to_vec());
        arguments.push(request.arguments.first().cloned().unwrap_or_default());
        arguments.push(request.path.to_vec());
        arguments.extend(request.arguments.iter().skip(1).cloned());
        ExecPlan::Instead { path: self.engine.clone(), arguments, environment: request.environment.to_vec() }
    }

    fn ending(&mut self, cpu: &mut C, ending: &Ending) -> i32 {
        if self.options.statistics {
            eprintln!("guest_run: {ending:?} {}", cpu.counts());
        }
        if let Ending::Signal { fault: Some(fault), .. } = ending
            && std::env::var_os("GUEST_RUN_FAULTS").is_some()
        {
            let guest = cpu.guest();
            eprintln!("guest_run: {fault:x?} at {:#x}, registers {:x?}", guest.rip, guest.gpr);
        }
        match ending {
            Ending::Exit(_) if !self.verify() => 99,
            Ending::Exit(status) => *status,
            _ => 0,
        }
    }

    fn warn(&mut self, text: &str) {
        eprintln!("guest_run: {text}");
    }
}

/// What is printed with `--statistics`.
trait Counts {
    fn counts(&self) -> String;
}

impl Counts for Engine {
    fn counts(&self) -> String {
        format!("{:?}", self.statistics())
    }
}

impl Counts for native::Native {
    fn counts(&self) -> String {
        String::new()
    }
}

/// `main` of C: Rust's own start-up ignores SIGPIPE and makes handlers, which the target would inherit.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    // SAFETY: the C library's arguments.
    let words = (0..count as usize).map(|at| unsafe { CStr::from_ptr(*arguments.add(at)) }.to_owned()).collect();
    match run(words) {
        Ok(never) => match never {},
        Err(message) => {
            eprintln!("guest_run: {message}");
            127
        }
    }
}

fn run(words: Vec<CString>) -> Result<std::convert::Infallible, String> {
    let mut options = Options::default();
    let mut words = words.into_iter().skip(1).peekable();
    while let Some(word) = words.next_if(|word| word.as_bytes().starts_with(b"--")) {
        match word.to_str() {
            Ok("--native") => options.native = true,
            Ok("--checks") => options.checks = true,
            Ok("--children") => options.children = true,
            Ok("--verify") => options.verify = true,
            Ok("--statistics") => options.statistics = true,
            Ok("--argv0") => options.argv0 = words.next(),
            _ => return Err(format!("{word:?} is no option")),
        }
    }
    let words: Vec<CString> = words.collect();
    let path = words.first().ok_or("expected a program")?.clone();
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.into_vec(), vec![b'='], value.into_vec()].concat()).ok())
        .collect();
    let engine = std::fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
    let runner = Runner {
        options: options.clone(),
        engine: engine.into_os_string().into_vec(),
        view: None,
        told: Space::new(&[]),
    };
    let mut process = Process::new(Setup::default()).map_err(|error| error.to_string())?;
    if options.native {
        let cpu = native::Native::new();
        let start = loader::load(&mut process, &path, options.argv0, &words, &environment)?;
        process.run(cpu, runner, &start).map_err(|error| error.to_string())
    } else {
        if options.checks {
            map_shadow()?;
        }
        let engine =
            Engine::new(Config { checks: options.checks, ..Config::default() }).map_err(|error| error.to_string())?;
        let start = loader::load(&mut process, &path, options.argv0, &words, &environment)?;
        process.run(engine, runner, &start).map_err(|error| error.to_string())
    }
}

/// Everything is addressable.
fn map_shadow() -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: new memory where nothing is.
    let at = unsafe {
        libc::mmap(SHADOW_OFFSET as *mut _, GUEST_END as usize, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if at as u64 == SHADOW_OFFSET { Ok(()) } else { Err(format!("shadow: {}", std::io::Error::last_os_error())) }
}
