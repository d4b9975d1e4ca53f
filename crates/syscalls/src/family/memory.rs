//! The address space, and what is known of its pages.

use crate::rule::{by, bytes, count_of, input, output, times};
use crate::shape::{IOVEC, Moves, iovecs, nodemask_bytes};
use crate::table::syscalls;
use crate::visit::Visit;

syscalls! {
    /// The address space.
    MEMORY:
    9 mmap(start: ulong, length: ulong, prot: int, flags: int, fd: int, offset: long) is ADDRESS_SPACE;
    10 mprotect(addr: ulong, len: ulong, prot: ulong) is ADDRESS_SPACE;
    11 munmap(start: ulong, length: ulong) is ADDRESS_SPACE;
    12 brk(end_data_segment: ulong) is ADDRESS_SPACE;
    25 mremap(old_addr: ulong, old_size: ulong, new_size: ulong, flags: ulong, new_addr: ulong)
        registers mremap_registers is ADDRESS_SPACE;
    26 msync(start: ulong, length: ulong, flags: int) [input(start, count_of(length))] is BLOCKS;
    27 mincore(start: ulong, length: ulong, vec: ptr) [by(mincore)];
    28 madvise(start: ulong, length: ulong, advice: int) is ADDRESS_SPACE;
    149 mlock(addr: ulong, len: ulong);
    150 munlock(addr: ulong, len: ulong);
    151 mlockall(flags: int);
    152 munlockall();
    216 remap_file_pages(start: ulong, size: ulong, prot: ulong, pgoff: ulong, flags: ulong) is ADDRESS_SPACE;
    237 mbind(start: ulong, len: ulong, policy: ulong, nodemask: ptr, maxnode: ulong, flags: uint) [by(mbind)];
    238 set_mempolicy(policy: int, nodemask: ptr, maxnode: ulong) [by(set_mempolicy)];
    239 get_mempolicy(policy: ptr, nodemask: ptr, maxnode: ulong, addr: ulong, flags: ulong)
        [output(policy, bytes(4)).or_null(), by(get_mempolicy)];
    256 migrate_pages(pid: int, maxnode: ulong, old_nodes: ptr, new_nodes: ptr) [by(migrate_pages)] is BLOCKS;
    279 move_pages(pid: int, nr_pages: ulong, pages: ptr, nodes: ptr, status: ptr, flags: int)
        [input(pages, times(nr_pages, 8)), input(nodes, times(nr_pages, 4)).or_null(),
         output(status, times(nr_pages, 4))] is BLOCKS;
    310 process_vm_readv(pid: int, lvec: ptr, liovcnt: ulong, rvec: ptr, riovcnt: ulong, flags: ulong)
        [by(process_vm_readv)];
    311 process_vm_writev(pid: int, lvec: ptr, liovcnt: ulong, rvec: ptr, riovcnt: ulong, flags: ulong)
        [by(process_vm_writev)];
    323 userfaultfd(flags: int) is OPENS | LATER;
    324 membarrier(cmd: int, flags: uint, cpu_id: int);
    325 mlock2(addr: ulong, len: ulong, flags: int);
    329 pkey_mprotect(addr: ulong, len: ulong, prot: ulong, pkey: int) is ADDRESS_SPACE;
    330 pkey_alloc(flags: ulong, access_rights: ulong);
    331 pkey_free(pkey: int);
    440 process_madvise(pidfd: int, vec: ptr, vlen: ulong, advice: int, flags: uint) [input(vec, times(vlen, 16))]
        is ADDRESS_SPACE;
    447 memfd_secret(flags: uint) is OPENS;
    450 set_mempolicy_home_node(start: ulong, len: ulong, home_node: ulong, flags: ulong);
    453 map_shadow_stack(addr: ulong, size: ulong, flags: uint) is ADDRESS_SPACE | ENGINE;
    462 mseal(start: ulong, len: ulong, flags: ulong) is ADDRESS_SPACE;
}

fn mremap_registers(args: &[u64; 6]) -> u8 {
    const MREMAP_FIXED: u64 = 2;
    const MREMAP_DONTUNMAP: u64 = 4;
    if args[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP) == 0 { 0b0_1111 } else { 0b1_1111 }
}

/// One byte for each page.
fn mincore(visit: &mut Visit<'_>) {
    let pages = visit.arg(1).div_ceil(4096);
    visit.whole("mincore(vec)", visit.arg(2), pages);
}

fn mbind(visit: &mut Visit<'_>) {
    if visit.arg(3) != 0 {
        visit.input("mbind(nodemask)", visit.arg(3), nodemask_bytes(visit.arg(4)));
    }
}

fn set_mempolicy(visit: &mut Visit<'_>) {
    if visit.arg(1) != 0 {
        visit.input("set_mempolicy(nodemask)", visit.arg(1), nodemask_bytes(visit.arg(2)));
    }
}

fn get_mempolicy(visit: &mut Visit<'_>) {
    if visit.arg(1) != 0 {
        visit.whole("get_mempolicy(nodemask)", visit.arg(1), nodemask_bytes(visit.arg(2)));
    }
}

fn migrate_pages(visit: &mut Visit<'_>) {
    let size = nodemask_bytes(visit.arg(1));
    visit.input("migrate_pages(old_nodes)", visit.arg(2), size);
    visit.input("migrate_pages(new_nodes)", visit.arg(3), size);
}

/// The remote vector is read here, what it points to belongs to another process.
fn process_vm(visit: &mut Visit<'_>, [local, element, remote]: [&'static str; 3], moves: Moves) {
    let vector = (visit.arg(1), visit.arg(2));
    iovecs(visit, local, |_| element.into(), vector, moves);
    visit.input(remote, visit.arg(3), visit.arg(4).min(1024) * IOVEC);
}

fn process_vm_readv(visit: &mut Visit<'_>) {
    let names = ["process_vm_readv(lvec)", "process_vm_readv(lvec[...])", "process_vm_readv(rvec)"];
    let returned = visit.returned();
    process_vm(visit, names, Moves::ToTarget(returned));
}

fn process_vm_writev(visit: &mut Visit<'_>) {
    let names = ["process_vm_writev(lvec)", "process_vm_writev(lvec[...])", "process_vm_writev(rvec)"];
    process_vm(visit, names, Moves::FromTarget);
}
