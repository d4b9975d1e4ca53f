//! Requests to terminals, files, disks and the kernel's own devices.

use libc::*;

use crate::world::{World, raw};
use crate::{Case, case};

/// The two ends of a terminal.
fn terminal(world: &mut World) -> (u64, u64) {
    let master = world.open("/dev/ptmx", O_RDWR | O_NOCTTY);
    let unlocked = 0_u32;
    raw(SYS_ioctl, [master, 0x4004_5431, &raw const unlocked as u64, 0, 0, 0]);
    let slave = world.native(SYS_ioctl, [master, 0x5441, (O_RDWR | O_NOCTTY) as u64, 0, 0, 0]);
    (master, slave)
}

/// What a terminal is set to, as an object.
fn settings(world: &mut World, terminal: u64, request: u64, size: usize) -> u64 {
    let mut settings = [0_u8; 64];
    world.prepare(SYS_ioctl, [terminal, request, settings.as_mut_ptr() as u64, 0, 0, 0]);
    world.bytes(&settings[..size])
}

/// Calls a request on this device, which writes so many bytes.
fn asks(world: &mut World, device: u64, request: u64, size: usize) -> [u64; 6] {
    [device, request, world.room(size), 0, 0, 0]
}

fn disk(world: &mut World) -> u64 {
    world.open("/dev/loop0", O_RDONLY)
}

fn tun(world: &mut World) -> u64 {
    world.open("/dev/net/tun", O_RDWR)
}

/// A tun device that exists, until its descriptor is closed.
fn named_tun(world: &mut World) -> u64 {
    let device = tun(world);
    let mut request = [0_u8; 40];
    request[16] = 1;
    world.prepare(SYS_ioctl, [device, 0x4004_54ca, request.as_mut_ptr() as u64, 0, 0, 0]);
    device
}

fn faults(world: &mut World) -> u64 {
    let descriptor = world.native(SYS_userfaultfd, [1, 0, 0, 0, 0, 0]);
    let mut api = [0xaa_u64, 0, 0];
    world.prepare(SYS_ioctl, [descriptor, 0xc018_aa3f, api.as_mut_ptr() as u64, 0, 0, 0]);
    descriptor
}

/// A page whose faults are reported, nothing in it yet.
fn reported_page(world: &mut World, descriptor: u64) -> u64 {
    let args = [0, 4096, 3, 0x22, u64::MAX, 0];
    let page = raw(SYS_mmap, args) as u64;
    world.finally(move || {
        raw(SYS_munmap, [page, 4096, 0, 0, 0, 0]);
    });
    let mut register = [page, 4096, 1, 0];
    world.prepare(SYS_ioctl, [descriptor, 0xc020_aa00, register.as_mut_ptr() as u64, 0, 0, 0]);
    page
}

fn event(world: &mut World) -> u64 {
    let mut attributes = [0_u8; 128];
    (attributes[0], attributes[4], attributes[40]) = (1, 128, 0x20);
    attributes[16] = 100;
    world.native(SYS_perf_event_open, [attributes.as_ptr() as u64, 0, u64::MAX, u64::MAX, 0, 0])
}

/// How many entries of a size fit, in an object with a head of four or eight bytes.
fn list(world: &mut World, count: u32, head: usize, size: usize) -> u64 {
    let room = world.room(head + count as usize * size);
    world.put(room, &count.to_le_bytes());
    room
}

/// Entries that the kernel reads whether or not it uses them must be zero.
fn zeroed_list(world: &mut World, count: u32, head: usize, size: usize) -> u64 {
    let room = list(world, count, head, size);
    world.put(room + 4, &vec![0; head - 4 + count as usize * size]);
    room
}

pub const CASES: &[Case] = &[
    case("TCGETS", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5401, 36)
    }),
    case("TCSETS", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        [slave, 0x5402, settings(w, slave, 0x5401, 36), 0, 0, 0]
    }),
    case("TCGETA", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5405, 18)
    })
    .loose()
    .uncut(),
    case("TCSETA", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        [slave, 0x5406, settings(w, slave, 0x5405, 18), 0, 0, 0]
    }),
    case("TCGETS2", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x802c_542a, 44)
    }),
    case("TCSETS2", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        [slave, 0x402c_542b, settings(w, slave, 0x802c_542a, 44), 0, 0, 0]
    }),
    case("TIOCGWINSZ", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5413, 8)
    }),
    case("TIOCSWINSZ", SYS_ioctl, |w| [terminal(w).1, 0x5414, w.words(&[0x0050_0018]), 0, 0, 0]),
    case("TIOCGPTN", SYS_ioctl, |w| {
        let master = terminal(w).0;
        asks(w, master, 0x8004_5430, 4)
    }),
    case("TIOCSPTLCK", SYS_ioctl, |w| [terminal(w).0, 0x4004_5431, w.halves(&[0]), 0, 0, 0]),
    case("TIOCGPTLCK", SYS_ioctl, |w| {
        let master = terminal(w).0;
        asks(w, master, 0x8004_5439, 4)
    }),
    case("TIOCPKT", SYS_ioctl, |w| [terminal(w).0, 0x5420, w.halves(&[1]), 0, 0, 0]),
    case("TIOCGPKT", SYS_ioctl, |w| {
        let master = terminal(w).0;
        asks(w, master, 0x8004_5438, 4)
    }),
    case("TIOCGEXCL", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x8004_5440, 4)
    }),
    case("TIOCGDEV", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x8004_5432, 4)
    }),
    case("TIOCGETD", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5424, 4)
    }),
    case("TIOCSETD", SYS_ioctl, |w| [terminal(w).1, 0x5423, w.halves(&[0]), 0, 0, 0]),
    case("TIOCOUTQ", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5411, 4)
    }),
    case("TIOCINQ", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x541b, 4)
    }),
    case("TIOCSTI", SYS_ioctl, |w| [terminal(w).1, 0x5412, w.bytes(b"x"), 0, 0, 0]).uncut(),
    case("TIOCGSOFTCAR", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5419, 4)
    }),
    case("TIOCSSOFTCAR", SYS_ioctl, |w| [terminal(w).1, 0x541a, w.halves(&[0]), 0, 0, 0]),
    case("TIOCGLCKTRMIOS", SYS_ioctl, |w| {
        let slave = terminal(w).1;
        asks(w, slave, 0x5456, 36)
    }),
    case("TIOCGPTPEER", SYS_ioctl, |w| [terminal(w).0, 0x5441, (O_RDWR | O_NOCTTY) as u64, 0, 0, 0]),
    case("KVM_CREATE_VM", SYS_ioctl, |w| [w.open("/dev/kvm", O_RDWR), 0xae01, 0, 0, 0, 0]),
    case("NS_GET_USERNS", SYS_ioctl, |w| [w.open("/proc/self/ns/net", O_RDONLY), 0xb701, 0, 0, 0, 0]),
    case("FIONBIO", SYS_ioctl, |w| [w.pipe().0, 0x5421, w.halves(&[1]), 0, 0, 0]),
    case("FIOASYNC", SYS_ioctl, |w| [w.pipe().0, 0x5452, w.halves(&[0]), 0, 0, 0]),
    case("FIOQSIZE", SYS_ioctl, |w| {
        let file = w.file();
        asks(w, file, 0x5460, 8)
    }),
    case("FIGETBSZ", SYS_ioctl, |w| {
        let file = w.file();
        asks(w, file, 2, 4)
    }),
    case("FIBMAP", SYS_ioctl, |w| [w.file(), 1, w.halves(&[0]), 0, 0, 0]),
    case("FS_IOC_GETFLAGS", SYS_ioctl, |w| {
        let file = w.file();
        asks(w, file, 0x8008_6601, 4)
    }),
    case("FS_IOC_SETFLAGS", SYS_ioctl, |w| {
        let file = w.file();
        let mut flags = 0_u32;
        raw(SYS_ioctl, [file, 0x8008_6601, &raw mut flags as u64, 0, 0, 0]);
        [file, 0x4008_6602, w.halves(&[flags]), 0, 0, 0]
    }),
    case("FS_IOC_GETVERSION", SYS_ioctl, |w| {
        let file = w.file();
        asks(w, file, 0x8008_7601, 4)
    }),
    case("FS_IOC_FSGETXATTR", SYS_ioctl, |w| {
        let file = w.file();
        asks(w, file, 0x801c_581f, 28)
    }),
    case("FS_IOC_GETFSUUID", SYS_ioctl, |w| {
        let file = w.file();
        asks(w, file, 0x8011_1500, 17)
    }),
    case("FS_IOC_FIEMAP", SYS_ioctl, |w| {
        let map = w.room(32 + 3 * 56);
        w.put(map, &0_u64.to_le_bytes());
        w.put(map + 8, &u64::MAX.to_le_bytes());
        w.put(map + 16, &1_u32.to_le_bytes());
        w.put(map + 24, &3_u32.to_le_bytes());
        [w.file(), 0xc020_660b, map, 0, 0, 0]
    })
    .loose(),
    case("PROCMAP_QUERY", SYS_ioctl, |w| {
        let name = w.room(100);
        let query = w.room(104);
        let mut words = [0_u64; 13];
        (words[0], words[2], words[10], words[11]) = (104, main as *const () as u64, 100, name);
        for (place, word) in words.iter().enumerate() {
            w.put(query + place as u64 * 8, &word.to_le_bytes());
        }
        [w.open("/proc/self/maps", O_RDONLY), 0xc068_6611, query, 0, 0, 0]
    })
    .uncut(),
    case("BLKGETSIZE64", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x8008_1272, 8)
    }),
    case("BLKGETSIZE", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1260, 8)
    }),
    case("BLKROGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x125e, 4)
    }),
    case("BLKRAGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1263, 8)
    }),
    case("BLKFRAGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1265, 8)
    }),
    case("BLKSECTGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1267, 2)
    }),
    case("BLKSSZGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1268, 4)
    }),
    case("BLKBSZGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x8008_1270, 4)
    }),
    case("BLKIOMIN", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1278, 4)
    }),
    case("BLKIOOPT", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x1279, 4)
    }),
    case("BLKALIGNOFF", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x127a, 4)
    }),
    case("BLKPBSZGET", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x127b, 4)
    }),
    case("BLKDISCARDZEROES", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x127c, 4)
    }),
    case("BLKROTATIONAL", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x127e, 2)
    }),
    case("BLKGETDISKSEQ", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x8008_1280, 8)
    }),
    case("RNDGETENTCNT", SYS_ioctl, |w| {
        let device = w.open("/dev/urandom", O_RDONLY);
        asks(w, device, 0x8004_5200, 4)
    }),
    case("TUNGETFEATURES", SYS_ioctl, |w| {
        let device = tun(w);
        asks(w, device, 0x8004_54cf, 4)
    }),
    case("TUNSETIFF", SYS_ioctl, |w| {
        let request = w.room(40);
        w.put(request, &[0; 16]);
        w.put(request + 16, &[1, 0]);
        [tun(w), 0x4004_54ca, request, 0, 0, 0]
    })
    .loose(),
    case("TUNGETIFF", SYS_ioctl, |w| {
        let device = named_tun(w);
        asks(w, device, 0x8004_54d2, 40)
    })
    .loose(),
    case("TUNGETSNDBUF", SYS_ioctl, |w| {
        let device = named_tun(w);
        asks(w, device, 0x8004_54d3, 4)
    }),
    case("TUNSETSNDBUF", SYS_ioctl, |w| [named_tun(w), 0x4004_54d4, w.halves(&[65536]), 0, 0, 0]),
    case("TUNGETVNETHDRSZ", SYS_ioctl, |w| {
        let device = named_tun(w);
        asks(w, device, 0x8004_54d7, 4)
    }),
    case("TUNSETVNETHDRSZ", SYS_ioctl, |w| [named_tun(w), 0x4004_54d8, w.halves(&[12]), 0, 0, 0]),
    case("UFFDIO_API", SYS_ioctl, |w| {
        let descriptor = w.native(SYS_userfaultfd, [1, 0, 0, 0, 0, 0]);
        let api = w.room(24);
        w.put(api, &0xaa_u64.to_le_bytes());
        w.put(api + 8, &0_u64.to_le_bytes());
        [descriptor, 0xc018_aa3f, api, 0, 0, 0]
    }),
    case("UFFDIO_COPY", SYS_ioctl, |w| {
        let descriptor = faults(w);
        let page = reported_page(w, descriptor);
        let source = w.bytes(&[7; 4096]);
        let copy = w.room(40);
        for (place, word) in [page, source, 4096, 0].iter().enumerate() {
            w.put(copy + place as u64 * 8, &word.to_le_bytes());
        }
        [descriptor, 0xc028_aa03, copy, 0, 0, 0]
    })
    .uncut(),
    case("UFFDIO_ZEROPAGE", SYS_ioctl, |w| {
        let descriptor = faults(w);
        let page = reported_page(w, descriptor);
        let zero = w.room(32);
        for (place, word) in [page, 4096, 0].iter().enumerate() {
            w.put(zero + place as u64 * 8, &word.to_le_bytes());
        }
        [descriptor, 0xc020_aa04, zero, 0, 0, 0]
    })
    .uncut(),
    case("UFFDIO_WAKE", SYS_ioctl, |w| {
        let descriptor = faults(w);
        let page = reported_page(w, descriptor);
        [descriptor, 0x8010_aa02, w.words(&[page, 4096]), 0, 0, 0]
    }),
    case("PERF_EVENT_IOC_ID", SYS_ioctl, |w| {
        let event = event(w);
        asks(w, event, 0x8008_2407, 8)
    }),
    case("PERF_EVENT_IOC_PERIOD", SYS_ioctl, |w| [event(w), 0x4008_2404, w.words(&[1000]), 0, 0, 0]),
    case("NS_GET_OWNER_UID", SYS_ioctl, |w| {
        let namespace = w.open("/proc/self/ns/user", O_RDONLY);
        asks(w, namespace, 0xb704, 4)
    }),
    case("KVM_GET_SUPPORTED_CPUID", SYS_ioctl, |w| {
        [w.open("/dev/kvm", O_RDWR), 0xc008_ae05, zeroed_list(w, 200, 8, 40), 0, 0, 0]
    })
    .uncut(),
    case("KVM_GET_MSR_INDEX_LIST", SYS_ioctl, |w| {
        [w.open("/dev/kvm", O_RDWR), 0xc004_ae02, list(w, 500, 4, 4), 0, 0, 0]
    }),
    case("KVM_GET_MSR_INDEX_LIST, too small", SYS_ioctl, |w| {
        [w.open("/dev/kvm", O_RDWR), 0xc004_ae02, list(w, 0, 4, 4), 0, 0, 0]
    })
    .fails(E2BIG)
    .uncut(),
    case("VT_GETSTATE", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x5603, 6)
    }),
    case("VT_GETMODE", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x5601, 8)
    }),
    case("VT_OPENQRY", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x5600, 4)
    }),
    case("KDGETMODE", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x4b3b, 4)
    }),
    case("KDGKBTYPE", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x4b33, 1)
    }),
    case("KDGKBMODE", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x4b44, 4)
    }),
    case("KDGKBENT", SYS_ioctl, |w| {
        let entry = w.room(4);
        w.put(entry, &[0, 30]);
        [w.open("/dev/tty0", O_RDWR | O_NOCTTY), 0x4b46, entry, 0, 0, 0]
    }),
    case("GIO_CMAP", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x4b70, 48)
    }),
    case("GIO_SCRNMAP", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x4b40, 256)
    }),
    case("GIO_UNISCRNMAP", SYS_ioctl, |w| {
        let console = w.open("/dev/tty0", O_RDWR | O_NOCTTY);
        asks(w, console, 0x4b69, 512)
    }),
    case("LOOP_GET_STATUS64", SYS_ioctl, |w| {
        let disk = disk(w);
        asks(w, disk, 0x4c05, 232)
    })
    .fails(ENXIO)
    .uncut(),
    case("RTC_RD_TIME", SYS_ioctl, |w| {
        let clock = w.open("/dev/rtc0", O_RDONLY);
        asks(w, clock, 0x8024_7009, 36)
    }),
    case("an unknown request that writes", SYS_ioctl, |w| {
        // `_IOR` with a size that nobody knows: what the number says is all that is known, and nothing is written.
        let file = w.file();
        asks(w, file, 0x8010_7a7a, 16)
    })
    .fails(ENOTTY)
    .uncut(),
];

/// An address in the program's own text.
fn main() {}
