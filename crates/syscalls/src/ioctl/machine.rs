//! What the kernel itself offers by `ioctl`: events, random numbers, clocks, faults, virtual machines, namespaces.

use super::{Moves, Request, both, by, copies, io, ior, iow, iowr, reads, request, value, writes};
use crate::region::Param;
use crate::visit::Visit;

pub(super) const PERF: &[Request] = &[
    reads("PERF_EVENT_IOC_PERIOD", iow(b'$', 4, 8), 8).shown("VKI_PERF_EVENT_IOC_PERIOD"),
    request("PERF_EVENT_IOC_SET_FILTER", iow(b'$', 6, 8), Moves::Text(4096)).shown("VKI_PERF_EVENT_IOC_SET_FILTER"),
    writes("PERF_EVENT_IOC_ID", ior(b'$', 7, 8), 8).shown("VKI_PERF_EVENT_IOC_ID"),
    value("PERF_EVENT_IOC_SET_BPF", iow(b'$', 8, 4)),
    value("PERF_EVENT_IOC_PAUSE_OUTPUT", iow(b'$', 9, 4)),
    by("PERF_EVENT_IOC_QUERY_BPF", iowr(b'$', 10, 8), programs),
    by("PERF_EVENT_IOC_MODIFY_ATTRIBUTES", iow(b'$', 11, 8), attributes),
];

/// `struct perf_event_query_bpf`: how many numbers fit, how many there are, the numbers.
fn programs(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    let room = visit.u32_or_0(address);
    let found = visit.u32_or_0(address.wrapping_add(4));
    visit.whole(name, address.wrapping_add(4), 4);
    visit.output(name, address.wrapping_add(8), room * 4, found * 4);
}

fn attributes(visit: &mut Visit<'_>, _: Param, address: u64) {
    let names = ("ioctl(PERF_EVENT_IOC_MODIFY_ATTRIBUTES).size", "ioctl(PERF_EVENT_IOC_MODIFY_ATTRIBUTES)");
    crate::shape::sized(visit, names, address, 4, 64);
}

pub(super) const RANDOM: &[Request] = &[
    writes("RNDGETENTCNT", ior(b'R', 0, 4), 4),
    reads("RNDADDTOENTCNT", iow(b'R', 1, 4), 4),
    by("RNDADDENTROPY", iow(b'R', 3, 8), entropy),
];

/// `struct rand_pool_info`: bits, bytes, the bytes.
fn entropy(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 8);
    let size = visit.u32_or_0(address.wrapping_add(4));
    let size = if size as i32 > 0 { size } else { 0 };
    visit.input(name, address.wrapping_add(8), size);
}

/// The structure of time has an `int` more than is set, and nothing more is read of it.
const RTC_TIME: u32 = 36;

pub(super) const REAL_TIME_CLOCK: &[Request] = &[
    reads("RTC_ALM_SET", iow(b'p', 0x07, RTC_TIME), RTC_TIME),
    writes("RTC_ALM_READ", ior(b'p', 0x08, RTC_TIME), RTC_TIME).shown("RTC_RD_TIME/ALM_READ"),
    writes("RTC_RD_TIME", ior(b'p', 0x09, RTC_TIME), RTC_TIME).shown("RTC_RD_TIME/ALM_READ"),
    reads("RTC_SET_TIME", iow(b'p', 0x0a, RTC_TIME), RTC_TIME),
    writes("RTC_IRQP_READ", ior(b'p', 0x0b, 8), 8),
    value("RTC_IRQP_SET", iow(b'p', 0x0c, 8)),
    writes("RTC_EPOCH_READ", ior(b'p', 0x0d, 8), 8),
    value("RTC_EPOCH_SET", iow(b'p', 0x0e, 8)),
];

/// The offsets of a clock say that they only go in, and come back.
pub(super) const CLOCK: &[Request] =
    &[by("PTP_SYS_OFFSET", iow(b'=', 5, 832), clock_offset), by("PTP_SYS_OFFSET2", iow(b'=', 14, 832), clock_offset)];

fn clock_offset(visit: &mut Visit<'_>, _: Param, address: u64) {
    visit.input("ioctl(PTP_SYS_OFFSET).n_samples", address, 4);
    visit.whole("ioctl(PTP_SYS_OFFSET).ts", address, 832);
}

pub(super) const WATCHDOG: &[Request] =
    // Both say that they come out: the first goes in, the second moves nothing.
    &[reads("WDIOC_SETOPTIONS", ior(b'W', 4, 4), 4), value("WDIOC_KEEPALIVE", ior(b'W', 5, 4))];

pub(super) const NOTIFY: &[Request] = &[value("INOTIFY_IOC_SETNEXTWD", iow(b'I', 0, 4))];

pub(super) const SECCOMP: &[Request] = &[copies("SECCOMP_IOCTL_NOTIF_RECV", iowr(b'!', 0, 80), 80)];

/// Some say that they come out, and go in.
pub(super) const USER_FAULT: &[Request] = &[
    by("UFFDIO_API", iowr(0xaa, 0x3f, 24), fault_api),
    by("UFFDIO_REGISTER", iowr(0xaa, 0, 32), fault_register),
    reads("UFFDIO_UNREGISTER", ior(0xaa, 1, 16), 16),
    reads("UFFDIO_WAKE", ior(0xaa, 2, 16), 16),
    by("UFFDIO_COPY", iowr(0xaa, 3, 40), fault_copy),
    by("UFFDIO_ZEROPAGE", iowr(0xaa, 4, 32), fault_fill),
    both("UFFDIO_WRITEPROTECT", iowr(0xaa, 6, 24), 24),
    by("UFFDIO_CONTINUE", iowr(0xaa, 7, 32), fault_fill),
];

fn fault_api(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 16);
    visit.whole(name, address, 24);
}

/// What may be done with the range is written behind it and its mode.
fn fault_register(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 24);
    visit.whole(name, address.wrapping_add(24), 8);
}

/// The source is read; how many bytes were copied is written.
fn fault_copy(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 32);
    let (source, size) = (visit.u64_or_0(address.wrapping_add(8)), visit.u64_or_0(address.wrapping_add(16)));
    visit.input("ioctl(UFFDIO_COPY).src", source, size);
    visit.whole(name, address.wrapping_add(32), 8);
}

fn fault_fill(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 24);
    visit.whole(name, address.wrapping_add(24), 8);
}

pub(super) const NAMESPACE: &[Request] = &[
    value("NS_GET_USERNS", io(0xb7, 1)),
    value("NS_GET_PARENT", io(0xb7, 2)),
    value("NS_GET_NSTYPE", io(0xb7, 3)),
    writes("NS_GET_OWNER_UID", io(0xb7, 4), 4),
];

pub(super) const BUS: &[Request] = &[
    value("I2C_RETRIES", 0x0701),
    value("I2C_TIMEOUT", 0x0702),
    value("I2C_SLAVE", 0x0703),
    value("I2C_TENBIT", 0x0704),
    writes("I2C_FUNCS", 0x0705, 8),
    value("I2C_SLAVE_FORCE", 0x0706),
    by("I2C_RDWR", 0x0707, bus_messages),
    value("I2C_PEC", 0x0708),
    by("I2C_SMBUS", 0x0720, bus_block),
    writes("IOCTL_VM_SOCKETS_GET_LOCAL_CID", 0x07b9, 4),
];

/// `struct i2c_rdwr_ioctl_data`: messages of 16 bytes, each with a buffer and a direction.
fn bus_messages(visit: &mut Visit<'_>, name: Param, address: u64) {
    const MOST: u64 = 42;
    visit.input(name, address, 12);
    let (messages, count) = (visit.u64_or_0(address), visit.u32_or_0(address.wrapping_add(8)));
    if count > MOST {
        return;
    }
    visit.input("ioctl(I2C_RDWR).msgs", messages, count * 16);
    for index in 0..count {
        let at = messages.wrapping_add(index * 16);
        let (flags, size) = (visit.u16_at(at.wrapping_add(2)), visit.u16_at(at.wrapping_add(4)));
        let (Some(flags), Some(size)) = (flags, size) else { return };
        let buffer = visit.u64_or_0(at.wrapping_add(8));
        if flags & 1 == 0 {
            visit.input("ioctl(I2C_RDWR).msgs.buf", buffer, size);
        } else {
            visit.whole("ioctl(I2C_RDWR).msgs.buf", buffer, size);
        }
    }
}

/// `struct i2c_smbus_ioctl_data`: direction, command, size, and a block of 34 bytes.
fn bus_block(visit: &mut Visit<'_>, _: Param, address: u64) {
    visit.input("ioctl(VKI_I2C_SMBUS).i2c_smbus_ioctl_data.read_write", address, 2);
    visit.input("ioctl(VKI_I2C_SMBUS).i2c_smbus_ioctl_data.size", address.wrapping_add(4), 4);
    let data = visit.u64_or_0(address.wrapping_add(8));
    // How much of the block a size means is the bus's business: nothing is read for sure, and all may be written.
    let mut direction = [0];
    if data != 0 && visit.memory().read_bytes(address, &mut direction) && direction == [1] {
        let size = match visit.u32_or_0(address.wrapping_add(4)) {
            1 | 2 => 1,
            3 | 4 => 2,
            5..=8 => 34,
            _ => 0,
        };
        visit.whole("ioctl(VKI_I2C_SMBUS)", data, size);
    }
}

/// Structures that end in arrays: their numbers tell the size of the head alone.
pub(super) const VIRTUAL_MACHINE: &[Request] = &[
    by("KVM_GET_MSR_INDEX_LIST", iowr(0xae, 0x02, 4), |visit, name, at| tail_out(visit, name, at, (0, 4, 4))),
    by("KVM_GET_MSR_FEATURE_INDEX_LIST", iowr(0xae, 0x0a, 4), |visit, name, at| tail_out(visit, name, at, (0, 4, 4))),
    by("KVM_GET_SUPPORTED_CPUID", iowr(0xae, 0x05, 8), |visit, name, at| tail_out(visit, name, at, (0, 8, 40))),
    by("KVM_GET_EMULATED_CPUID", iowr(0xae, 0x09, 8), |visit, name, at| tail_out(visit, name, at, (0, 8, 40))),
    by("KVM_GET_CPUID2", iowr(0xae, 0x91, 8), |visit, name, at| tail_out(visit, name, at, (0, 8, 40))),
    by("KVM_SET_CPUID2", iow(0xae, 0x90, 8), |visit, name, at| tail_in(visit, name, at, (0, 8, 40))),
    by("KVM_GET_MSRS", iowr(0xae, 0x88, 8), machine_registers),
    by("KVM_SET_MSRS", iow(0xae, 0x89, 8), |visit, name, at| tail_in(visit, name, at, (0, 8, 16))),
    by("KVM_SET_GSI_ROUTING", iow(0xae, 0x6a, 8), |visit, name, at| tail_in(visit, name, at, (0, 8, 48))),
    by("KVM_SET_SIGNAL_MASK", iow(0xae, 0x8b, 4), |visit, name, at| tail_in(visit, name, at, (0, 4, 1))),
    by("KVM_GET_REG_LIST", iowr(0xae, 0xb0, 8), |visit, name, at| tail_out(visit, name, at, (0, 8, 8))),
];

/// A count, and from an offset on so many elements of a size, which are written; the count is corrected.
fn tail_out(visit: &mut Visit<'_>, name: Param, address: u64, (count_at, tail_at, size): (u64, u64, u64)) {
    visit.input(name, address.wrapping_add(count_at), 4);
    let now = visit.u32_or_0(address.wrapping_add(count_at));
    let room = visit.keep(0, now);
    visit.output(name, address.wrapping_add(tail_at), room * size, now * size);
    if !visit.is_before() {
        const E2BIG: i64 = 7;
        let told = visit.error() == 0 || visit.error() == E2BIG;
        visit.output_if(name, address.wrapping_add(count_at), 4, told);
    }
}

fn tail_in(visit: &mut Visit<'_>, name: Param, address: u64, (count_at, tail_at, size): (u64, u64, u64)) {
    visit.input(name, address.wrapping_add(count_at), 4);
    let count = visit.u32_or_0(address.wrapping_add(count_at));
    visit.input(name, address.wrapping_add(tail_at), count * size);
}

/// Each entry has the number of a register, which is read, and its value, which is written; as many as are returned.
fn machine_registers(visit: &mut Visit<'_>, name: Param, address: u64) {
    visit.input(name, address, 4);
    let count = visit.u32_or_0(address);
    for index in 0..count {
        let at = address.wrapping_add(8 + index * 16);
        if !visit.step() || visit.u32_at(at).is_none() {
            return;
        }
        visit.input(name, at, 4);
        if visit.is_before() || index < visit.returned() {
            visit.whole(name, at.wrapping_add(8), 8);
        }
    }
}
