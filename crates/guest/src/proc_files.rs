//! What `/proc/self` tells of the target, where the kernel's answer would be about the engine.
//!
//! `maps` (and its like) without the engine's lines; `exe`, `cmdline`, `environ` and `auxv` of the target. Everything
//! else in there is right as it is.

use crate::dispatch::{EFAULT, EINVAL};
use crate::raw::{self, read_string};
use crate::space::{Backing, Space};
use crate::task::Task;
use crate::{Cpu, Monitor};

/// Files whose content is ours to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnFile {
    Exe,
    /// `maps`, `smaps`, `numa_maps`: the kernel's text without the engine's parts.
    Maps(&'static str),
    Arguments,
    Environment,
    Auxiliary,
}

/// Which file of this process a path names, whatever way it takes: `self`, `thread-self`, the number, `task/N`.
fn own_file(path: &[u8], pid: i32) -> Option<OwnFile> {
    let path = std::str::from_utf8(path).ok()?;
    let (process, mut rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    if process != "self" && process != "thread-self" && process.parse() != Ok(pid) {
        return None;
    }
    if let Some(task) = rest.strip_prefix("task/") {
        rest = task.split_once('/')?.1;
    }
    Some(match rest {
        "exe" => OwnFile::Exe,
        "maps" => OwnFile::Maps("maps"),
        "smaps" => OwnFile::Maps("smaps"),
        "numa_maps" => OwnFile::Maps("numa_maps"),
        "cmdline" => OwnFile::Arguments,
        "environ" => OwnFile::Environment,
        "auxv" => OwnFile::Auxiliary,
        _ => return None,
    })
}

/// Which argument is a path that the kernel follows to its end, and the argument with the flag that says otherwise.
fn path_argument(number: i64) -> Option<(usize, Option<usize>)> {
    Some(match number {
        libc::SYS_stat
        | libc::SYS_access
        | libc::SYS_open
        | libc::SYS_truncate
        | libc::SYS_statfs
        | libc::SYS_getxattr
        | libc::SYS_listxattr => (0, None),
        libc::SYS_openat | libc::SYS_openat2 | libc::SYS_faccessat | libc::SYS_faccessat2 => (1, None),
        libc::SYS_newfstatat => (1, Some(3)),
        libc::SYS_statx => (1, Some(2)),
        _ => return None,
    })
}

/// `maps` without what is not the target's. The lines of one mapping begin with its range in all three files.
fn filter_maps(text: &str, space: &Space) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_shown = false;
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or("");
        // `maps` and `smaps` have `start-end`, `numa_maps` the start alone; other lines belong to the mapping above.
        let start = first.split('-').next().unwrap_or("");
        let is_header =
            start.len() >= 8 && start.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !is_header {
            if is_shown {
                out.push_str(line);
                out.push('\n');
            }
            continue;
        }
        let Ok(start) = u64::from_str_radix(start, 16) else { continue };
        let mapping = space.find(start);
        is_shown = mapping.is_some() || space.is_lent(start);
        if !is_shown {
            continue;
        }
        let name = match mapping.map(|mapping| &mapping.backing) {
            Some(Backing::Heap) => "[heap]",
            Some(Backing::Stack) => "[stack]",
            _ => "",
        };
        // Names that the kernel gave for the engine's sake are not the target's.
        let kept = line.strip_suffix("[heap]").or_else(|| line.strip_suffix("[stack]")).unwrap_or(line);
        if name.is_empty() || !first.contains('-') {
            out.push_str(kept.trim_end());
        } else {
            /// The column in which the kernel writes names.
            const NAME_AT: usize = 73;
            out.push_str(&format!("{:<NAME_AT$}{name}", kept.trim_end()));
        }
        out.push('\n');
    }
    out
}

/// A file in memory with this content, opened for reading at its start.
fn file_with(content: &[u8], name: &str, flags: u64) -> i64 {
    let close = if flags & libc::O_CLOEXEC as u64 != 0 { u64::from(libc::MFD_CLOEXEC) } else { 0 };
    let name = format!("{name}\0");
    // SAFETY: a new descriptor that the target gets; the content is read.
    unsafe {
        let descriptor = raw::syscall(libc::SYS_memfd_create, [name.as_ptr() as u64, close, 0, 0, 0, 0]);
        if descriptor < 0 {
            return descriptor;
        }
        let mut done = 0;
        while done < content.len() {
            let part = &content[done..];
            let arguments = [descriptor as u64, part.as_ptr() as u64, part.len() as u64, done as u64, 0, 0];
            let written = raw::syscall(libc::SYS_pwrite64, arguments);
            if written <= 0 {
                break;
            }
            done += written as usize;
        }
        descriptor
    }
}

fn joined(strings: &[Vec<u8>]) -> Vec<u8> {
    strings.iter().flat_map(|text| text.iter().copied().chain([0])).collect()
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    /// The target's executable, if that is what a path names by `/proc`.
    pub(crate) fn own_executable(&mut self, path: &[u8]) -> Option<Vec<u8>> {
        (path.starts_with(b"/proc/") && own_file(path, raw::getpid()) == Some(OwnFile::Exe))
            .then(|| self.process().setup.program.clone())
    }

    pub(crate) fn open(&mut self, cpu: &mut C, number: u64, a: [u64; 6]) -> i64 {
        let (path, flags) = match number as i64 {
            libc::SYS_open => (a[0], a[1]),
            libc::SYS_openat => (a[1], a[2]),
            _ => (a[1], raw::read_u64(a[2]).unwrap_or(0)),
        };
        let file = self.own_path(path);
        let content = match file {
            None | Some(OwnFile::Exe) => return self.pass_with_path(cpu, number, a),
            Some(_) if flags as i32 & libc::O_ACCMODE != libc::O_RDONLY => {
                return self.pass(cpu, number, a);
            }
            Some(OwnFile::Maps(name)) => {
                let Ok(text) = std::fs::read_to_string(format!("/proc/thread-self/{name}")) else {
                    return self.pass(cpu, number, a);
                };
                filter_maps(&text, &self.process().space).into_bytes()
            }
            Some(OwnFile::Arguments) => joined(&self.process().setup.arguments),
            Some(OwnFile::Environment) => joined(&self.process().setup.environment),
            Some(OwnFile::Auxiliary) => self.process().setup.auxiliary.clone(),
        };
        file_with(&content, "proc", flags)
    }

    /// What the string at an address names. The first bytes are looked at alone: most paths are something else.
    fn own_path(&mut self, address: u64) -> Option<OwnFile> {
        let mut start = [0; 6];
        if raw::read_bytes(address, &mut start).is_err() || &start != b"/proc/" {
            return None;
        }
        own_file(&read_string(address, libc::PATH_MAX as usize).ok()?, raw::getpid())
    }

    pub(crate) fn readlink(&mut self, cpu: &mut C, number: u64, a: [u64; 6]) -> i64 {
        let (path, buffer, bytes) =
            if number as i64 == libc::SYS_readlink { (a[0], a[1], a[2]) } else { (a[1], a[2], a[3]) };
        if self.own_path(path) != Some(OwnFile::Exe) {
            return self.pass(cpu, number, a);
        }
        if bytes as i32 <= 0 {
            return EINVAL;
        }
        let program = &self.process().setup.program;
        let length = program.len().min(bytes as i32 as usize);
        let answer = program[..length].to_vec();
        cpu.before_write(buffer, buffer.saturating_add(length as u64));
        if raw::write_bytes(buffer, &answer).is_ok() { length as i64 } else { EFAULT }
    }

    /// Passes a call on; a path that names the target's executable by `/proc` becomes that file's.
    pub(crate) fn pass_with_path(&mut self, cpu: &mut C, number: u64, mut a: [u64; 6]) -> i64 {
        let Some((at, flags)) = path_argument(number as i64) else { return self.pass(cpu, number, a) };
        let stays = flags.is_some_and(|flags| a[flags] & libc::AT_SYMLINK_NOFOLLOW as u64 != 0);
        if stays || self.own_path(a[at]) != Some(OwnFile::Exe) {
            return self.pass(cpu, number, a);
        }
        let mut program = self.process().setup.program.clone();
        program.push(0);
        a[at] = program.as_ptr() as u64;
        self.pass(cpu, number, a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Mapping;

    #[test]
    fn paths_of_this_process() {
        assert_eq!(own_file(b"/proc/self/exe", 7), Some(OwnFile::Exe));
        assert_eq!(own_file(b"/proc/7/maps", 7), Some(OwnFile::Maps("maps")));
        assert_eq!(own_file(b"/proc/8/maps", 7), None);
        assert_eq!(own_file(b"/proc/thread-self/auxv", 7), Some(OwnFile::Auxiliary));
        assert_eq!(own_file(b"/proc/7/task/9/smaps", 7), Some(OwnFile::Maps("smaps")));
        assert_eq!(own_file(b"/proc/self/status", 7), None);
        assert_eq!(own_file(b"/proc/self", 7), None);
        assert_eq!(own_file(b"/proc/self/\xff", 7), None);
    }

    #[test]
    fn maps_show_the_target_alone() {
        let mut space = Space::new(&[]);
        let mut add = |start, end, backing| {
            space.record(Mapping { start, end, protection: 3, shared: false, backing });
        };
        add(0x40_0000, 0x41_0000, Backing::Anonymous);
        add(0xe00_0000_0000, 0xe00_0001_0000, Backing::Heap);
        let text = "00400000-00410000 r--p 00000000 08:01 12 /bin/x\n\
                    Size:  4 kB\n\
                    30000000-30100000 r-xp 00000000 08:01 12 /bin/engine\n\
                    Size:  8 kB\n\
                    e0000000000-e0000010000 rw-p 00000000 00:00 0 \n\
                    Size:  64 kB\n\
                    200000000000-200000010000 rw-p 00000000 00:00 0 \n\
                    7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]\n";
        space.lend(0x2000_0000_0000..0x2e00_0000_0000);
        let shown = filter_maps(text, &space);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "00400000-00410000 r--p 00000000 08:01 12 /bin/x");
        assert_eq!(lines[1], "Size:  4 kB");
        assert!(lines[2].starts_with("e0000000000-e0000010000 rw-p 00000000 00:00 0 "), "{}", lines[2]);
        assert_eq!(lines[2].find("[heap]"), Some(73));
        assert_eq!(lines[3..], ["Size:  64 kB", "200000000000-200000010000 rw-p 00000000 00:00 0"]);
    }
}
