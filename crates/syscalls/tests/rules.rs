//! Rules that no native case can show: what a child sees of the call that made it, what is asked of [`Memory`] beside
//! bytes, and effects.

use leakscope_syscalls::{Access, Descriptor, Effects, Memory, all, check, descriptors, lookup, written};

/// Memory that holds these words from an address on, and the facts that go with it.
struct Words(u64, Vec<u64>);

impl Memory for Words {
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool {
        let bytes: Vec<u8> = self.1.iter().flat_map(|word| word.to_le_bytes()).collect();
        let found = address.checked_sub(self.0).and_then(|at| bytes.get(at as usize..at as usize + into.len()));
        found.map(|found| into.copy_from_slice(found)).is_some()
    }

    fn semaphores(&self, id: i32) -> Option<u32> {
        (id == 7).then_some(3)
    }

    fn is_writable(&self, fd: i32) -> Option<bool> {
        [Some(false), Some(true), None][fd as usize % 3]
    }

    fn bpf_map(&self, fd: i32) -> Option<(u32, u32)> {
        (fd == 5).then_some((4, 24))
    }
}

/// What a call does, as lines of name, address, bytes and access: before it, and after it.
fn described(number: u64, args: [u64; 6], result: i64, memory: &Words) -> (Vec<String>, Vec<String>) {
    let line = |region: leakscope_syscalls::Region| {
        let letter = match region.access {
            Access::Read => 'r',
            Access::Copy => 'c',
            Access::Write => 'w',
        };
        format!("{letter} {:#x} {} {}", region.address, region.length, region.param)
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let before = check(number, &args, memory, &mut |region| first.push(line(region)));
    written(number, &args, result, &before, memory, &mut |region| second.push(line(region)));
    (first, second)
}

const NOTHING: Words = Words(0, Vec::new());

#[test]
fn a_forked_child_is_told_its_own_number_and_its_parent_the_child_s() {
    const FORK: u64 = 0x0110_0000 | 17;
    let args = [FORK, 0, 0x1000, 0x2000, 0, 0];
    let told = |result| described(56, args, result, &NOTHING).1;
    assert_eq!(told(0), ["w 0x2000 4 clone(child_tidptr)"]);
    assert_eq!(told(77), ["w 0x1000 4 clone(parent_tidptr)"]);
    assert_eq!(told(-11), [""; 0]);
    // A thread shares the memory: both see both.
    let thread = [FORK | 0x100, 0, 0x1000, 0x2000, 0, 0];
    assert_eq!(described(56, thread, 77, &NOTHING).1.len(), 2);
    assert_eq!(described(56, thread, 0, &NOTHING).1.len(), 2);
}

#[test]
fn facts_that_only_the_kernel_knows_are_asked_for() {
    let getall = |id| described(66, [id, 0, 13, 0x1000, 0, 0], 0, &NOTHING);
    assert_eq!(getall(7).0, ["w 0x1000 6 semctl(IPC_GETALL, arg.array)"]);
    assert_eq!(getall(7).1, ["w 0x1000 6 semctl(IPC_GETALL, arg.array)"]);
    assert!(getall(8).0.is_empty());

    let vector = Words(0x1000, vec![0x5000, 10]);
    let splice = |fd| described(278, [fd, 0x1000, 1, 0, 0, 0], 4, &vector);
    assert_eq!(splice(0).0, ["r 0x1000 16 vmsplice(iov)", "w 0x5000 10 vmsplice(iov[...])"]);
    assert_eq!(splice(0).1, ["w 0x5000 4 vmsplice(iov[...])"]);
    assert_eq!(splice(1).0, ["r 0x1000 16 vmsplice(iov)", "r 0x5000 10 vmsplice(iov[...])"]);
    assert!(splice(1).1.is_empty());
    assert_eq!(splice(2).0, ["r 0x1000 16 vmsplice(iov)"]);

    // BPF_MAP_LOOKUP_ELEM: the key is read, the value is written, as long as the map says.
    let lookup = |fd| described(321, [1, 0x1000, 32, 0, 0, 0], 0, &Words(0x1000, vec![fd, 0x5000, 0x6000, 0]));
    assert_eq!(lookup(5).0, ["r 0x1000 32 bpf(attr)", "r 0x5000 4 bpf(attr->key)", "w 0x6000 24 bpf(attr->value)"]);
    assert_eq!(lookup(5).1, ["w 0x6000 24 bpf(attr->value)"]);
    assert_eq!(lookup(6).0, ["r 0x1000 32 bpf(attr)"]);
}

/// The kernel tells the whole length of a name that did not fit: what it wrote is no more than the buffer held.
#[test]
fn a_name_that_was_cut_is_as_long_as_its_buffer() {
    let args = [3, 0x5000, 0x1000, 0, 0, 0];
    let mut memory = Words(0x1000, vec![4]);
    let before = check(43, &args, &memory, &mut |_| ());
    memory.1[0] = 16;
    let mut lengths = Vec::new();
    written(43, &args, 9, &before, &memory, &mut |region| lengths.push((region.address, region.length)));
    assert_eq!(lengths, [(0x5000, 4), (0x1000, 4)]);
}

/// Strings end at their zero, at what cannot be read, and at what the kernel looks at.
#[test]
fn strings_end_where_the_kernel_stops() {
    let opened = |words: Vec<u64>| described(2, [0x1000, 0, 0, 0, 0, 0], 3, &Words(0x1000, words)).0;
    assert_eq!(opened(vec![u64::from_le_bytes(*b"/tmp\0\0\0\0")]), ["r 0x1000 5 open(filename)"]);
    assert_eq!(opened(vec![u64::MAX]), ["r 0x1000 9 open(filename)"]);
    assert_eq!(opened(vec![u64::MAX; 1000]), ["r 0x1000 4096 open(filename)"]);
    assert_eq!(opened(Vec::new()), ["r 0x1000 1 open(filename)"]);
}

#[test]
fn descriptors_in_control_messages_are_found_and_no_count_is_trusted() {
    // A message whose control data lie at 0x1038: two descriptors, then a length that goes beyond the end.
    let mut words = vec![0, 0, 0, 0, 0x1038, 48, 0];
    words.extend([24, 1 | 1 << 32, 4 | 5 << 32, u64::MAX, 1 | 1 << 32, 9]);
    let mut found = Vec::new();
    descriptors(47, &[3, 0x1000, 0, 0, 0, 0], 1, &Words(0x1000, words), &mut |what| found.push(what));
    assert_eq!(found, [Descriptor::Opened(4), Descriptor::Opened(5)]);
}

/// Each flag is on the calls that an engine has to know of.
#[test]
fn effects_are_on_the_calls_that_have_them() {
    let with = |effect| all().filter(|call| call.effects.has(effect)).map(|call| call.name).collect::<Vec<_>>();
    assert_eq!(with(Effects::FORKS), ["clone", "fork", "vfork", "clone3"]);
    assert_eq!(with(Effects::LEAVES), ["rt_sigreturn", "execve", "exit", "exit_group", "execveat"]);
    assert_eq!(
        with(Effects::ADDRESS_SPACE),
        [
            "mmap",
            "mprotect",
            "munmap",
            "brk",
            "mremap",
            "madvise",
            "shmat",
            "shmdt",
            "io_setup",
            "io_destroy",
            "remap_file_pages",
            "pkey_mprotect",
            "process_madvise",
            "map_shadow_stack",
            "mseal"
        ]
    );
    assert_eq!(with(Effects::CLOSES), ["close", "dup2", "execve", "dup3", "execveat", "close_range"]);
    assert_eq!(
        with(Effects::SIGNALS),
        ["rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "sigaltstack"]
    );
    for name in ["rseq", "set_robust_list", "arch_prctl", "ptrace", "set_tid_address", "io_uring_setup"] {
        assert!(with(Effects::ENGINE).contains(&name), "{name}");
    }
    for number in [0, 7, 35, 61, 202, 232] {
        assert!(lookup(number).unwrap().effects.has(Effects::BLOCKS), "{number}");
    }
}

/// Rust's standard library asks with two null pointers whether there is such a call; one alone is wrong, unless the flags say
/// that there is no name.
#[test]
fn statx_without_pointers_is_only_a_question() {
    let statx = |name, flags, buf| described(332, [3, name, flags, 0, buf, 0], 0, &NOTHING).0;
    assert_eq!(statx(0, 0, 0), [""; 0]);
    assert_eq!(statx(0, 0, 0x1000), ["r 0x0 1 statx(filename)", "w 0x1000 256 statx(buf)"]);
    assert_eq!(statx(0, 0x1000, 0x1000), ["w 0x1000 256 statx(buf)"]);
    assert_eq!(statx(0x2000, 0, 0), ["r 0x2000 1 statx(filename)", "w 0x0 256 statx(buf)"]);
}
