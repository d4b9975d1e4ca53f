//! A small world for one system call: objects between pages that nobody may touch, and descriptors that go away.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use leakscope_syscalls::Memory;

const PAGE: usize = 4096;

/// Where an object lies in its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Its last byte is the last that may be touched.
    End,
    /// Its first byte is the first that may be touched.
    Start,
    /// Of object `.0`, only the bytes before `.1` may be touched; the others are as in `End`.
    Cut(usize, usize),
}

/// An object: what the call gets an address of.
pub struct Object {
    mapping: *mut u8,
    mapped_bytes: usize,
    pub address: u64,
    /// Bytes of it that may be touched.
    pub visible: usize,
    pub size: usize,
    /// Which of its bytes a case set; the others hold the pattern.
    pub is_set: Vec<bool>,
}

/// What a call is given, and what must be undone after it.
pub struct World {
    placement: Placement,
    pattern: u8,
    pub objects: Vec<Object>,
    descriptors: Vec<i32>,
    children: Vec<i32>,
    pub folder: PathBuf,
    cleanup: Vec<Box<dyn FnOnce()>>,
    /// What the case needs is not there on this machine.
    pub is_impossible: bool,
}

impl World {
    pub fn new(placement: Placement, pattern: u8, folder: &Path) -> Self {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).expect("scratch folder");
        Self {
            placement,
            pattern,
            objects: Vec::new(),
            descriptors: Vec::new(),
            children: Vec::new(),
            folder: folder.to_owned(),
            cleanup: Vec::new(),
            is_impossible: false,
        }
    }

    /// An object of `size` bytes, filled with the pattern.
    pub fn room(&mut self, size: usize) -> u64 {
        let inner = size.max(1).div_ceil(PAGE) * PAGE;
        let mapped_bytes = inner + 2 * PAGE;
        // SAFETY: a new anonymous mapping; nothing else refers to it.
        let mapping = unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            let at = at.cast::<u8>();
            assert_eq!(libc::mprotect(at.add(PAGE).cast(), inner, libc::PROT_READ | libc::PROT_WRITE), 0);
            std::ptr::write_bytes(at.add(PAGE), self.pattern, inner);
            at
        };
        let first = mapping as u64 + PAGE as u64;
        let end = first + inner as u64;
        let (address, visible) = match self.placement {
            Placement::Start => (first, size),
            Placement::Cut(object, bytes) if object == self.objects.len() => (end - bytes as u64, bytes),
            _ => (end - size as u64, size),
        };
        self.objects.push(Object { mapping, mapped_bytes, address, visible, size, is_set: vec![false; size] });
        address
    }

    /// Sets bytes of an object; what may not be touched of it is left alone.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        let object = self
            .objects
            .iter_mut()
            .find(|object| address >= object.address && address < object.address + object.size as u64)
            .expect("an address in an object");
        let offset = (address - object.address) as usize;
        assert!(offset + bytes.len() <= object.size, "beyond the object");
        for (place, byte) in bytes.iter().enumerate() {
            object.is_set[offset + place] = true;
            if offset + place < object.visible {
                // SAFETY: within the object's visible bytes, which are mapped writable.
                unsafe { *((address + place as u64) as *mut u8) = *byte };
            }
        }
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let address = self.room(bytes.len());
        self.put(address, bytes);
        address
    }

    pub fn text(&mut self, text: &str) -> u64 {
        let text = CString::new(text).expect("no zero");
        self.bytes(text.as_bytes_with_nul())
    }

    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    pub fn halves(&mut self, halves: &[u32]) -> u64 {
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    /// A vector of rooms of these sizes, set if there are bytes.
    pub fn vector(&mut self, parts: &[(usize, Option<u8>)]) -> u64 {
        let mut words = Vec::new();
        for (size, fill) in parts {
            let at = self.room(*size);
            if let Some(fill) = fill {
                self.put(at, &vec![*fill; *size]);
            }
            words.extend([at, *size as u64]);
        }
        self.words(&words)
    }

    /// A name in the scratch folder, as an object.
    pub fn name(&mut self, name: &str) -> u64 {
        let path = self.folder.join(name);
        self.text(path.to_str().expect("utf-8"))
    }

    /// A file of the scratch folder with some contents; its name as an object.
    pub fn file_name(&mut self, name: &str) -> u64 {
        std::fs::write(self.folder.join(name), vec![b'x'; 6000]).expect("scratch file");
        self.name(name)
    }

    /// A descriptor of such a file, open for both.
    pub fn file(&mut self) -> u64 {
        let path = self.folder.join("file");
        std::fs::write(&path, vec![b'x'; 6000]).expect("scratch file");
        self.open(path.to_str().expect("utf-8"), libc::O_RDWR)
    }

    pub fn open(&mut self, path: &str, flags: i32) -> u64 {
        let path = CString::new(path).expect("no zero");
        self.native(libc::SYS_open, [path.as_ptr() as u64, flags as u64, 0o644, 0, 0, 0])
    }

    pub fn directory(&mut self) -> u64 {
        let folder = self.folder.to_str().expect("utf-8").to_owned();
        self.open(&folder, libc::O_RDONLY | libc::O_DIRECTORY)
    }

    /// A call that prepares the one that is tested: what it returns is a descriptor, and closed in the end.
    pub fn native(&mut self, number: i64, args: [u64; 6]) -> u64 {
        let result = self.prepare(number, args);
        if result >= 0 {
            self.own(result as i32);
        }
        result as u64
    }

    /// A call that prepares the one that is tested. If it fails the case is not possible here.
    pub fn prepare(&mut self, number: i64, args: [u64; 6]) -> i64 {
        let result = raw(number, args);
        self.is_impossible |= result < 0;
        result
    }

    /// Closes this descriptor in the end.
    pub fn own(&mut self, descriptor: i32) {
        self.descriptors.push(descriptor);
    }

    pub fn finally(&mut self, what: impl FnOnce() + 'static) {
        self.cleanup.push(Box::new(what));
    }

    pub fn pipe(&mut self) -> (u64, u64) {
        let mut pair = [0_i32; 2];
        assert_eq!(raw(libc::SYS_pipe2, [pair.as_mut_ptr() as u64, libc::O_NONBLOCK as u64, 0, 0, 0, 0]), 0);
        pair.iter().for_each(|descriptor| self.own(*descriptor));
        (pair[0] as u64, pair[1] as u64)
    }

    /// A pipe that holds some bytes.
    pub fn filled_pipe(&mut self) -> (u64, u64) {
        let (read, write) = self.pipe();
        assert_eq!(raw(libc::SYS_write, [write, b"0123456789abcdef".as_ptr() as u64, 16, 0, 0, 0]), 16);
        (read, write)
    }

    pub fn socket_pair(&mut self, kind: i32) -> (u64, u64) {
        let mut pair = [0_i32; 2];
        let args = [libc::AF_UNIX as u64, kind as u64, 0, pair.as_mut_ptr() as u64, 0, 0];
        assert_eq!(raw(libc::SYS_socketpair, args), 0);
        pair.iter().for_each(|descriptor| self.own(*descriptor));
        (pair[0] as u64, pair[1] as u64)
    }

    pub fn socket(&mut self, domain: i32, kind: i32) -> u64 {
        self.native(libc::SYS_socket, [domain as u64, kind as u64, 0, 0, 0, 0])
    }

    /// A child that does `what` and then ends. It may only make system calls.
    pub fn child(&mut self, what: impl FnOnce()) -> i32 {
        let child = raw(libc::SYS_fork, [0; 6]);
        if child == 0 {
            what();
            raw(libc::SYS_exit_group, [0; 6]);
        }
        self.children.push(child as i32);
        child as i32
    }

    /// A child that is traced by us and has stopped.
    pub fn stopped_child(&mut self) -> u64 {
        let child = self.child(|| {
            raw(libc::SYS_ptrace, [libc::PTRACE_TRACEME as u64, 0, 0, 0, 0, 0]);
            let me = raw(libc::SYS_getpid, [0; 6]) as u64;
            raw(libc::SYS_kill, [me, libc::SIGSTOP as u64, 0, 0, 0, 0]);
        });
        let mut status = 0_i32;
        assert_eq!(raw(libc::SYS_wait4, [child as u64, &raw mut status as u64, 0, 0, 0, 0]), i64::from(child));
        assert!(libc::WIFSTOPPED(status));
        child as u64
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for cleanup in self.cleanup.drain(..) {
            cleanup();
        }
        for descriptor in self.descriptors.drain(..) {
            raw(libc::SYS_close, [descriptor as u64, 0, 0, 0, 0, 0]);
        }
        for child in self.children.drain(..) {
            raw(libc::SYS_kill, [child as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
            raw(libc::SYS_wait4, [child as u64, 0, 0, 0, 0, 0]);
        }
        for object in self.objects.drain(..) {
            raw(libc::SYS_munmap, [object.mapping as u64, object.mapped_bytes as u64, 0, 0, 0, 0]);
        }
    }
}

/// The system call as it is: its result, or a negative error number.
pub fn raw(number: i64, args: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the cases make harmless calls on objects of their own; the kernel changes rcx, r11 and rax alone.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// Our own memory, asked for through the kernel so that nothing can fault.
pub struct Native;

impl Memory for Native {
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool {
        let local = [into.as_mut_ptr() as u64, into.len() as u64];
        let remote = [address, into.len() as u64];
        let me = raw(libc::SYS_getpid, [0; 6]) as u64;
        let args = [me, local.as_ptr() as u64, 1, remote.as_ptr() as u64, 1, 0];
        raw(libc::SYS_process_vm_readv, args) == into.len() as i64
    }

    fn semaphores(&self, id: i32) -> Option<u32> {
        let mut state = [0_u64; 13];
        let args = [id as u64, 0, libc::IPC_STAT as u64, state.as_mut_ptr() as u64, 0, 0];
        (raw(libc::SYS_semctl, args) == 0).then_some(state[10] as u32)
    }

    fn is_writable(&self, fd: i32) -> Option<bool> {
        let flags = raw(libc::SYS_fcntl, [fd as u64, libc::F_GETFL as u64, 0, 0, 0, 0]);
        (flags >= 0).then_some(flags as i32 & libc::O_ACCMODE != libc::O_RDONLY)
    }
}
