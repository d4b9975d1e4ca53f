//! `execve`: the new program runs natively, or under the engine when the monitor says so.
//!
//! The kernel resets handlers, keeps what is ignored and what is blocked, closes what is close-on-exec (all descriptors of
//! the engine are), and ends the other threads. All of that is the target's own state already. What we have to do: set
//! the limits that were kept here, and find out before the monitor closes its books whether it will work at all.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use crate::dispatch::EFAULT;
use crate::limits::Limits;
use crate::monitor::{Ending, ExecPlan, ExecRequest};
use crate::raw::{self, RESTART, read_string, read_strings};
use crate::signals;
use crate::task::Task;
use crate::thread::BATON;
use crate::{Cpu, Monitor};

const E2BIG: i64 = -(libc::E2BIG as i64);
const EACCES: i64 = -(libc::EACCES as i64);
const ENAMETOOLONG: i64 = -(libc::ENAMETOOLONG as i64);

/// A call in the words of `execveat`.
struct Request {
    directory: i32,
    path: Vec<u8>,
    arguments: Vec<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    flags: i32,
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    pub(crate) fn execve(&mut self, cpu: &mut C, [path, arguments, environment, ..]: [u64; 6]) -> i64 {
        self.execute(cpu, libc::AT_FDCWD, [path, arguments, environment], 0)
    }

    pub(crate) fn execveat(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        self.execute(cpu, a[0] as i32, [a[1], a[2], a[3]], a[4] as i32)
    }

    fn execute(&mut self, cpu: &mut C, directory: i32, pointers: [u64; 3], flags: i32) -> i64 {
        let request = match self.read_request(directory, pointers, flags) {
            Ok(request) => request,
            Err(error) => return error,
        };
        let format = match check_executable(&request) {
            Ok(format) => format,
            Err(error) => return error,
        };
        let plan = match format {
            // Whether it runs at all is the kernel's decision.
            Format::Other => ExecPlan::Native,
            Format::Program => {
                let named = named_path(&request);
                let (arguments, environment) = (&request.arguments, &request.environment);
                self.monitor().exec(cpu, &ExecRequest { path: &named, arguments, environment })
            }
        };
        let result = match &plan {
            ExecPlan::Native => self.exec_now(cpu, &request),
            ExecPlan::Instead { path, arguments, environment } => {
                let request = Request {
                    directory: libc::AT_FDCWD,
                    path: path.clone(),
                    arguments: arguments.clone(),
                    environment: environment.clone(),
                    flags: 0,
                };
                self.exec_now(cpu, &request)
            }
        };
        if result != RESTART {
            self.monitor().exec_failed(cpu, -result as i32);
        }
        result
    }

    fn read_request(&mut self, directory: i32, pointers: [u64; 3], flags: i32) -> Result<Request, i64> {
        let [path, arguments, environment] = pointers;
        let mut path = read_string(path, libc::PATH_MAX as usize).map_err(|_| EFAULT)?;
        if path.len() >= libc::PATH_MAX as usize {
            return Err(ENAMETOOLONG);
        }
        if let Some(instead) = self.own_executable(&path) {
            path = instead;
        }
        let arguments = read_strings(arguments).map_err(|_| EFAULT)?;
        let environment = read_strings(environment).map_err(|_| EFAULT)?;
        // 2^31 strings are the kernel's limit, and its limit on bytes comes long before.
        if arguments.len().max(environment.len()) > i32::MAX as usize {
            return Err(E2BIG);
        }
        Ok(Request { directory, path, arguments, environment, flags })
    }

    fn exec_now(&mut self, cpu: &mut C, request: &Request) -> i64 {
        let terminated = |text: &Vec<u8>| CString::new(text.as_slice()).unwrap_or_default();
        let path = terminated(&request.path);
        let arguments: Vec<CString> = request.arguments.iter().map(terminated).collect();
        let environment: Vec<CString> = request.environment.iter().map(terminated).collect();
        let pointers =
            |strings: &[CString]| -> Vec<u64> { strings.iter().map(|text| text.as_ptr() as u64).chain([0]).collect() };
        let (argument_pointers, environment_pointers) = (pointers(&arguments), pointers(&environment));
        self.monitor().ending(cpu, &Ending::Exec);
        self.finish_vfork();
        let limits = self.process().limits.enforce();
        signals::restore_for_exec(&self.process().actions);
        let call = [
            request.directory as u64,
            path.as_ptr() as u64,
            argument_pointers.as_ptr() as u64,
            environment_pointers.as_ptr() as u64,
            request.flags as u64,
            0,
        ];
        BATON.keep();
        // SAFETY: the process is replaced, or nothing happens. The baton stays here: nobody else may run meanwhile.
        let result = unsafe { raw::interruptible(libc::SYS_execveat as u64, call, self.thread().pending_word()) };
        BATON.keep_no_longer();
        signals::install_all::<C>(&self.process().actions);
        Limits::restore(limits);
        result
    }
}

/// The path for people, and for a program that is started in another way.
fn named_path(request: &Request) -> Vec<u8> {
    if request.path.starts_with(b"/") || request.directory == libc::AT_FDCWD && !request.path.is_empty() {
        return request.path.clone();
    }
    let link = format!("/proc/self/fd/{}", request.directory);
    let mut path = std::fs::read_link(link).map(|path| path.as_os_str().as_bytes().to_vec()).unwrap_or_default();
    if !request.path.is_empty() {
        path.push(b'/');
        path.extend_from_slice(&request.path);
    }
    path
}

/// What a file seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// An ELF file for this processor in 64-bit mode, or a script with an interpreter.
    Program,
    /// Something that the engine cannot run, or cannot read. The kernel may know better (`binfmt_misc`, 32 bits).
    Other,
}

/// What the file begins with.
fn format_of(head: &[u8]) -> Format {
    const X86_64: u8 = 62;
    let is_elf = head.len() >= 20 && head.starts_with(b"\x7fELF\x02") && head[18] == X86_64 && head[19] == 0;
    if is_elf || head.starts_with(b"#!") { Format::Program } else { Format::Other }
}

/// Whether the kernel is going to execute the file, before anything is given up for it; else its error.
fn check_executable(request: &Request) -> Result<Format, i64> {
    let path = CString::new(request.path.as_slice()).unwrap_or_default();
    let (directory, path_pointer) = (request.directory as u64, path.as_ptr() as u64);
    let flags = libc::AT_EACCESS | request.flags & (libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: only asks.
    let access =
        unsafe { raw::syscall(libc::SYS_faccessat2, [directory, path_pointer, libc::X_OK as u64, flags as u64, 0, 0]) };
    if access < 0 {
        return Err(access);
    }
    let follow = if request.flags & libc::AT_SYMLINK_NOFOLLOW != 0 { libc::O_NOFOLLOW } else { 0 };
    // By its descriptor where there is no name.
    let (directory, path) = if request.path.is_empty() {
        let link = format!("/proc/self/fd/{}", request.directory);
        (libc::AT_FDCWD as u64, CString::new(link).unwrap_or_default())
    } else {
        (directory, path)
    };
    let open_flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | follow;
    // SAFETY: a new descriptor, closed below.
    let descriptor =
        unsafe { raw::syscall(libc::SYS_openat, [directory, path.as_ptr() as u64, open_flags as u64, 0, 0, 0]) };
    if descriptor < 0 {
        // A program that may be executed but not read: the kernel will say.
        return if descriptor == EACCES { Ok(Format::Other) } else { Err(descriptor) };
    }
    let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
    let mut head = [0_u8; 20];
    // SAFETY: status and head are as large as the kernel writes.
    let (result, length, mode) = unsafe {
        let result = raw::syscall(libc::SYS_fstat, [descriptor as u64, status.as_mut_ptr() as u64, 0, 0, 0, 0]);
        let arguments = [descriptor as u64, head.as_mut_ptr() as u64, head.len() as u64, 0, 0, 0];
        let length = raw::syscall(libc::SYS_pread64, arguments);
        raw::syscall(libc::SYS_close, [descriptor as u64, 0, 0, 0, 0, 0]);
        (result, length, status.assume_init().st_mode)
    };
    if result >= 0 && mode & libc::S_IFMT != libc::S_IFREG {
        return Err(EACCES);
    }
    Ok(format_of(&head[..usize::try_from(length).unwrap_or(0)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> Result<Format, i64> {
        let path = path.as_bytes().to_vec();
        check_executable(&Request { directory: libc::AT_FDCWD, path, arguments: vec![], environment: vec![], flags: 0 })
    }

    #[test]
    fn what_execve_would_say() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        let name = script.to_str().unwrap();
        assert_eq!(check(name), Err(EACCES), "not executable yet");
        use std::os::unix::fs::PermissionsExt;
        let allow = || std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        allow();
        assert_eq!(check(name), Ok(Format::Program));
        std::fs::write(&script, "echo no interpreter\n").unwrap();
        assert_eq!(check(name), Ok(Format::Other));
        assert_eq!(check("/bin/true"), Ok(Format::Program));
        assert_eq!(check("/"), Err(EACCES));
        assert_eq!(check("/nowhere"), Err(-i64::from(libc::ENOENT)));
        assert_eq!(check(&format!("{name}/below")), Err(-i64::from(libc::ENOTDIR)));
    }
}
