//! Sizes and numbers against the kernel's headers, by a C program that gcc compiles here.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use leakscope_syscalls::{Memory, check, requests};

/// Where requests and structures are defined. Each is compiled alone: some do not go together.
const HEADERS: &[&str] = &[
    "scsi/sg.h",
    "scsi/scsi_ioctl.h",
    "linux/input.h",
    "linux/uinput.h",
    "sound/asound.h",
    "asm-generic/termios.h",
    "linux/times.h",
    "linux/time_types.h",
    "asm-generic/statfs.h",
    "asm-generic/fcntl.h",
    "asm-generic/ioctls.h",
    "asm-generic/termbits.h",
    "asm-generic/shmbuf.h",
    "asm-generic/msgbuf.h",
    "asm/sembuf.h",
    "asm-generic/siginfo.h",
    "asm/ioctls.h",
    "asm/termbits.h",
    "linux/aio_abi.h",
    "linux/blkpg.h",
    "linux/blkzoned.h",
    "linux/bpf.h",
    "linux/capability.h",
    "linux/cdrom.h",
    "linux/dm-ioctl.h",
    "linux/eventpoll.h",
    "linux/ethtool.h",
    "linux/fb.h",
    "linux/fiemap.h",
    "linux/fs.h",
    "linux/fsverity.h",
    "linux/futex.h",
    "linux/fuse.h",
    "linux/hdreg.h",
    "linux/i2c-dev.h",
    "linux/i2c.h",
    "linux/if_tun.h",
    "linux/inotify.h",
    "linux/io_uring.h",
    "linux/kd.h",
    "linux/kvm.h",
    "linux/landlock.h",
    "linux/loop.h",
    "linux/mount.h",
    "linux/mqueue.h",
    "linux/msg.h",
    "linux/nbd.h",
    "linux/net_tstamp.h",
    "linux/nsfs.h",
    "linux/openat2.h",
    "linux/perf_event.h",
    "linux/ptp_clock.h",
    "linux/ptrace.h",
    "linux/random.h",
    "linux/resource.h",
    "linux/route.h",
    "linux/if_arp.h",
    "linux/rtc.h",
    "linux/sched.h",
    "linux/sched/types.h",
    "linux/seccomp.h",
    "linux/sem.h",
    "linux/serial.h",
    "linux/shm.h",
    "linux/sockios.h",
    "linux/soundcard.h",
    "linux/stat.h",
    "linux/sysinfo.h",
    "linux/times.h",
    "linux/timex.h",
    "linux/tty.h",
    "linux/usbdevice_fs.h",
    "linux/userfaultfd.h",
    "linux/utsname.h",
    "linux/vt.h",
    "linux/watchdog.h",
    "linux/dqblk_xfs.h",
    "linux/quota.h",
    "asm/statfs.h",
    "asm/stat.h",
    "asm/ldt.h",
    "asm/ptrace.h",
    "linux/vm_sockets.h",
    "linux/kexec.h",
    "linux/if.h",
    "linux/sysctl.h",
    "asm/signal.h",
    "asm/siginfo.h",
    "linux/filter.h",
    "linux/mii.h",
    "linux/rseq.h",
    "linux/keyctl.h",
    "linux/utime.h",
];

/// Compiles a program that prints what `lines` say, and gives what it printed, by name.
fn print_by_c(header: &str, lines: &str) -> BTreeMap<String, u64> {
    let folder = tempfile::tempdir().expect("scratch folder");
    let program = folder.path().join("print");
    let mut source = String::from("#include <stdio.h>\n#include <linux/ioctl.h>\n");
    // Some name structures that they do not define.
    source += match header {
        "asm-generic/ioctls.h" => "#include <asm/termbits.h>\n#include <linux/serial.h>\n",
        "linux/fs.h" => "#include <linux/fiemap.h>\n",
        _ => "",
    };
    source += &format!("#if __has_include(<{header}>)\n#include <{header}>\n#endif\n");
    source += &format!("int main(void) {{\n{lines}return 0; }}\n");
    let mut gcc = Command::new("gcc")
        .args(["-x", "c", "-w", "-o"])
        .arg(&program)
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .expect("start gcc");
    gcc.stdin.take().expect("a pipe").write_all(source.as_bytes()).expect("write to gcc");
    assert!(gcc.wait().expect("gcc").success(), "gcc refused the program with {header}");
    let output = Command::new(&program).output().expect("start the program");
    let text = String::from_utf8(output.stdout).expect("utf-8");
    text.lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, n)| (name.to_owned(), n.parse().unwrap()))
        .collect()
}

/// A header's own text, empty if it is not installed.
fn text_of(header: &str) -> String {
    let folders = ["/usr/include", "/usr/include/x86_64-linux-gnu"];
    let text = folders.iter().find_map(|folder| std::fs::read_to_string(format!("{folder}/{header}")).ok());
    let lines = text.unwrap_or_default();
    let lines: Vec<String> = lines.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.join("\n") + "\n"
}

#[test]
fn requests_have_the_numbers_of_the_headers() {
    let mut defined: BTreeMap<String, u64> = BTreeMap::new();
    for header in HEADERS {
        let text = text_of(header);
        let is_here = |name: &str| text.contains(&format!("define {name} "));
        let lines: String = requests()
            .filter(|(name, _)| is_here(name))
            .map(|(name, _)| format!("#ifdef {name}\nprintf(\"{name} %u\\n\", (unsigned)({name}));\n#endif\n"))
            .collect();
        if !lines.is_empty() {
            defined.extend(print_by_c(header, &lines));
        }
    }
    let mut unknown = Vec::new();
    for (name, number) in requests() {
        match defined.get(name) {
            Some(value) => assert_eq!(u64::from(number), *value, "{name}"),
            None => unknown.push(name),
        }
    }
    println!("{} requests compared, not in these headers: {unknown:?}", defined.len());
    assert!(defined.len() >= 300, "only {} of {} requests compared", defined.len(), requests().count());
}

/// Every byte is readable, and is this one: counts are small, versions are the first.
struct Filled(u8);

impl Memory for Filled {
    fn read_bytes(&self, _: u64, into: &mut [u8]) -> bool {
        into.fill(self.0);
        true
    }
}

const AT: u64 = 0x1_0000;

/// The bytes from `AT` to the end of what a call touches there.
fn reach(number: u64, args: [u64; 6], byte: u8) -> u64 {
    let mut end = AT;
    check(number, &args, &Filled(byte), &mut |region| {
        if (AT..AT + 0x1000).contains(&region.address) {
            end = end.max(region.address + region.length);
        }
    });
    end - AT
}

/// A structure of the headers, and the call that is given one as an argument: its number, where, and the others.
const STRUCTURES: &[(&str, u64, [u64; 6])] = &[
    ("struct stat", 4, [0, AT, 0, 0, 0, 0]),
    ("struct statfs", 137, [0, AT, 0, 0, 0, 0]),
    ("struct statx", 332, [0, 0, 0, 0, AT, 0]),
    ("struct rlimit", 97, [0, AT, 0, 0, 0, 0]),
    ("struct rusage", 98, [0, AT, 0, 0, 0, 0]),
    ("struct sysinfo", 99, [AT, 0, 0, 0, 0, 0]),
    ("struct tms", 100, [AT, 0, 0, 0, 0, 0]),
    ("struct new_utsname", 63, [AT, 0, 0, 0, 0, 0]),
    ("struct timex", 159, [AT, 0, 0, 0, 0, 0]),
    ("struct shmid64_ds", 31, [0, 2, AT, 0, 0, 0]),
    ("struct shminfo64", 31, [0, 3, AT, 0, 0, 0]),
    ("struct shm_info", 31, [0, 14, AT, 0, 0, 0]),
    ("struct semid64_ds", 66, [0, 0, 2, AT, 0, 0]),
    ("struct seminfo", 66, [0, 0, 3, AT, 0, 0]),
    ("struct msqid64_ds", 71, [0, 2, AT, 0, 0, 0]),
    ("struct msginfo", 71, [0, 3, AT, 0, 0, 0]),
    ("struct sembuf", 65, [0, AT, 1, 0, 0, 0]),
    ("struct mq_attr", 245, [0, 0, AT, 0, 0, 0]),
    ("struct epoll_event", 233, [0, 1, 0, AT, 0, 0]),
    ("struct iocb", 210, [0, AT, 0, 0, 0, 0]),
    ("struct io_event", 210, [0, 0, AT, 0, 0, 0]),
    ("struct io_uring_params", 425, [0, AT, 0, 0, 0, 0]),
    ("struct user_desc", 154, [1, AT, 16, 0, 0, 0]),
    ("struct sigaction", 13, [10, 0, AT, 8, 0, 0]),
    ("stack_t", 131, [0, AT, 0, 0, 0, 0]),
    ("siginfo_t", 128, [0, AT, 0, 8, 0, 0]),
    ("sigevent_t", 222, [0, AT, 0, 0, 0, 0]),
    ("struct __kernel_timespec", 228, [0, AT, 0, 0, 0, 0]),
    ("struct __kernel_itimerspec", 224, [0, AT, 0, 0, 0, 0]),
    ("struct utimbuf", 132, [0, AT, 0, 0, 0, 0]),
    ("struct seccomp_notif_sizes", 317, [3, 0, AT, 0, 0, 0]),
    ("struct landlock_path_beneath_attr", 445, [0, 1, AT, 0, 0, 0]),
    ("struct robust_list_head", 273, [AT, 24, 0, 0, 0, 0]),
    ("struct if_dqblk", 179, [0x8000_0700, 0, 0, AT, 0, 0]),
    ("struct if_dqinfo", 179, [0x8000_0500, 0, 0, AT, 0, 0]),
    ("struct if_nextdqblk", 179, [0x8000_0900, 0, 0, AT, 0, 0]),
    ("struct fs_disk_quota", 179, [0x0058_0300, 0, 0, AT, 0, 0]),
    ("struct fs_quota_stat", 179, [0x0058_0500, 0, 0, AT, 0, 0]),
    ("struct fs_quota_statv", 179, [0x0058_0800, 0, 0, AT, 0, 0]),
    ("struct kexec_segment", 246, [0, 1, AT, 0, 0, 0]),
    ("struct flock", 72, [0, 5, AT, 0, 0, 0]),
    // Requests.
    ("struct termios", 16, [0, 0x5401, AT, 0, 0, 0]),
    ("struct termios2", 16, [0, 0x802c_542a, AT, 0, 0, 0]),
    ("struct winsize", 16, [0, 0x5413, AT, 0, 0, 0]),
    ("struct serial_struct", 16, [0, 0x541e, AT, 0, 0, 0]),
    ("struct serial_rs485", 16, [0, 0x542e, AT, 0, 0, 0]),
    ("struct serial_icounter_struct", 16, [0, 0x545d, AT, 0, 0, 0]),
    ("struct ifreq", 16, [0, 0x8913, AT, 0, 0, 0]),
    ("struct arpreq", 16, [0, 0x8954, AT, 0, 0, 0]),
    ("struct rtentry", 16, [0, 0x890b, AT, 0, 0, 0]),
    ("struct hd_geometry", 16, [0, 0x0301, AT, 0, 0, 0]),
    ("struct loop_info", 16, [0, 0x4c03, AT, 0, 0, 0]),
    ("struct loop_info64", 16, [0, 0x4c05, AT, 0, 0, 0]),
    ("struct loop_config", 16, [0, 0x4c0a, AT, 0, 0, 0]),
    ("struct fb_var_screeninfo", 16, [0, 0x4600, AT, 0, 0, 0]),
    ("struct fb_fix_screeninfo", 16, [0, 0x4602, AT, 0, 0, 0]),
    ("struct vt_mode", 16, [0, 0x5601, AT, 0, 0, 0]),
    ("struct vt_stat", 16, [0, 0x5603, AT, 0, 0, 0]),
    ("struct vt_sizes", 16, [0, 0x5609, AT, 0, 0, 0]),
    ("struct vt_consize", 16, [0, 0x560a, AT, 0, 0, 0]),
    ("struct vt_event", 16, [0, 0x560e, AT, 0, 0, 0]),
    ("struct vt_setactivate", 16, [0, 0x560f, AT, 0, 0, 0]),
    ("struct kbentry", 16, [0, 0x4b46, AT, 0, 0, 0]),
    ("struct kbsentry", 16, [0, 0x4b48, AT, 0, 0, 0]),
    ("struct kbdiacrs", 16, [0, 0x4b4a, AT, 0, 0, 0]),
    ("struct kbdiacrsuc", 16, [0, 0x4bfa, AT, 0, 0, 0]),
    ("struct kbkeycode", 16, [0, 0x4b4d, AT, 0, 0, 0]),
    ("struct kbd_repeat", 16, [0, 0x4b52, AT, 0, 0, 0]),
    ("struct unimapinit", 16, [0, 0x4b68, AT, 0, 0, 0]),
    ("struct console_font_op", 16, [0, 0x4b72, AT, 0, 0, 0]),
    ("struct rtc_time", 16, [0, 0x8024_7009, AT, 0, 0, 0]),
    ("struct cdrom_msf", 16, [0, 0x5303, AT, 0, 0, 0]),
    ("struct cdrom_ti", 16, [0, 0x5304, AT, 0, 0, 0]),
    ("struct cdrom_tochdr", 16, [0, 0x5305, AT, 0, 0, 0]),
    ("struct cdrom_tocentry", 16, [0, 0x5306, AT, 0, 0, 0]),
    ("struct cdrom_volctrl", 16, [0, 0x530a, AT, 0, 0, 0]),
    ("struct cdrom_subchnl", 16, [0, 0x530b, AT, 0, 0, 0]),
    ("struct cdrom_multisession", 16, [0, 0x5310, AT, 0, 0, 0]),
    ("struct cdrom_mcn", 16, [0, 0x5311, AT, 0, 0, 0]),
    ("struct sg_scsi_id", 16, [0, 0x2276, AT, 0, 0, 0]),
    ("struct uffdio_api", 16, [0, 0xc018_aa3f, AT, 0, 0, 0]),
    ("struct uffdio_register", 16, [0, 0xc020_aa00, AT, 0, 0, 0]),
    ("struct uffdio_copy", 16, [0, 0xc028_aa03, AT, 0, 0, 0]),
    ("struct uffdio_zeropage", 16, [0, 0xc020_aa04, AT, 0, 0, 0]),
    ("struct ptp_sys_offset", 16, [0, 0x4340_3d05, AT, 0, 0, 0]),
    ("struct ff_effect", 16, [0, 0x4030_4580, AT, 0, 0, 0]),
    ("struct input_mask", 16, [0, 0x8010_4592, AT, 0, 0, 0]),
    ("struct seccomp_notif", 16, [0, 0xc050_2100, AT, 0, 0, 0]),
    ("struct fsxattr", 16, [0, 0x801c_581f, AT, 0, 0, 0]),
    ("struct fstrim_range", 16, [0, 0xc018_5879, AT, 0, 0, 0]),
    ("struct file_clone_range", 16, [0, 0x4020_940d, AT, 0, 0, 0]),
    ("struct fiemap", 16, [0, 0xc020_660b, AT, 0, 0, 0]),
];

/// The header whose text defines a structure.
fn header_of(structure: &str) -> &'static str {
    match structure {
        "stack_t" | "struct sigaction" => return "asm/signal.h",
        "siginfo_t" | "sigevent_t" => return "asm/siginfo.h",
        _ => {}
    }
    let defines = |header: &&&str| {
        let text = text_of(header);
        text.contains(&format!("{structure} {{")) || text.contains(&format!("{structure}\n"))
    };
    HEADERS.iter().find(defines).unwrap_or_else(|| panic!("no header defines {structure}; install linux-libc-dev"))
}

#[test]
fn structures_have_the_sizes_of_the_headers() {
    let mut by_header: BTreeMap<&str, String> = BTreeMap::new();
    for (name, ..) in STRUCTURES {
        let line = format!("printf(\"{name} %zu\\n\", sizeof({name}));\n");
        by_header.entry(header_of(name)).or_default().push_str(&line);
    }
    let sizes: BTreeMap<String, u64> = by_header.iter().flat_map(|(header, lines)| print_by_c(header, lines)).collect();
    let mut wrong = Vec::new();
    for (name, number, args) in STRUCTURES {
        let (ours, theirs) = (reach(*number, *args, 0), sizes[*name]);
        if ours != theirs {
            wrong.push(format!("{name}: {ours} bytes of {theirs}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the installed headers may be too old for.
#[test]
fn newer_structures_have_the_sizes_of_generated_bindings() {
    use linux_raw_sys::{general, io_uring, net, ptrace};
    let same = |number: u64, args: [u64; 6], size: usize| assert_eq!(reach(number, args, 0), size as u64, "{number}");
    same(332, [0, 0, 0, 0, AT, 0], size_of::<general::statx>());
    same(451, [0, 0, AT, 0, 0, 0], size_of::<general::cachestat>());
    same(451, [0, AT, 0, 0, 0, 0], size_of::<general::cachestat_range>());
    same(449, [AT, 1, 0, 0, 0, 0], size_of::<general::futex_waitv>());
    same(425, [0, AT, 0, 0, 0, 0], size_of::<io_uring::io_uring_params>());
    same(427, [0, 22, AT, 1, 0, 0], size_of::<io_uring::io_uring_buf_reg>());
    same(427, [0, 24, AT, 1, 0, 0], size_of::<io_uring::io_uring_sync_cancel_reg>());
    same(427, [0, 25, AT, 1, 0, 0], size_of::<io_uring::io_uring_file_index_range>());
    same(427, [0, 26, AT, 1, 0, 0], size_of::<io_uring::io_uring_buf_status>());
    same(427, [0, 27, AT, 1, 0, 0], size_of::<io_uring::io_uring_napi>());
    same(427, [0, 29, AT, 1, 0, 0], size_of::<io_uring::io_uring_clock_register>());
    same(427, [0, 30, AT, 1, 0, 0], size_of::<io_uring::io_uring_clone_buffers>());
    same(427, [0, 34, AT, 1, 0, 0], size_of::<io_uring::io_uring_mem_region_reg>());
    same(427, [0, 13, AT, 1, 0, 0], size_of::<io_uring::io_uring_rsrc_register>());
    same(427, [0, 14, AT, 1, 0, 0], size_of::<io_uring::io_uring_rsrc_update2>());
    same(
        427,
        [0, 8, AT, 3, 0, 0],
        size_of::<io_uring::io_uring_probe>() + 3 * size_of::<io_uring::io_uring_probe_op>(),
    );
    same(46, [0, AT, 0, 0, 0, 0], size_of::<net::msghdr>());
    same(101, [0x4209, 1, AT, 0, 0, 0], size_of::<ptrace::ptrace_peeksiginfo_args>());
}

/// The fields that a structure's rules pick out stand where the headers put them.
#[test]
fn fields_stand_where_the_headers_put_them() {
    let fields: &[(&str, &str, u64, [u64; 6], &str)] = &[
        ("struct timex", "time", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->time)"),
        ("struct timex", "tick", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->tick)"),
        ("struct timex", "constant", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->constant)"),
        ("struct timex", "status", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->status)"),
        ("struct timex", "esterror", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->esterror)"),
        ("struct timex", "maxerror", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->maxerror)"),
        ("struct timex", "freq", 159, [AT, 0, 0, 0, 0, 0], "adjtimex(timex->freq)"),
        ("struct sigaction", "sa_mask", 13, [10, AT, 0, 8, 0, 0], "rt_sigaction(act->sa_mask)"),
        ("struct sigaction", "sa_flags", 13, [10, AT, 0, 8, 0, 0], "rt_sigaction(act->sa_flags)"),
        ("struct sigaction", "sa_restorer", 13, [10, AT, 0, 8, 0, 0], "rt_sigaction(act->sa_restorer)"),
        ("sigevent_t", "sigev_signo", 222, [0, AT, 0, 0, 0, 0], "timer_create(evp.sigev_signo)"),
        ("sigevent_t", "sigev_notify", 222, [0, AT, 0, 0, 0, 0], "timer_create(evp.sigev_notify)"),
        ("struct mq_attr", "mq_maxmsg", 240, [1, 0o100, 0, AT, 0, 0], "mq_open(attr->mq_maxmsg)"),
        ("struct mq_attr", "mq_msgsize", 240, [1, 0o100, 0, AT, 0, 0], "mq_open(attr->mq_msgsize)"),
        ("struct perf_event_attr", "size", 298, [AT, 0, 0, 0, 0, 0], "perf_event_open(attr->size)"),
        ("struct flock", "l_start", 72, [0, 5, AT, 0, 0, 0], "fcntl(lock->l_start)"),
        ("struct flock", "l_len", 72, [0, 5, AT, 0, 0, 0], "fcntl(lock->l_len)"),
        ("struct flock", "l_pid", 72, [0, 5, AT, 0, 0, 0], "fcntl(lock->l_pid)"),
    ];
    let mut by_header: BTreeMap<&str, String> = BTreeMap::new();
    for (of, field, ..) in fields {
        let line = format!("printf(\"{of}.{field} %zu\\n\", __builtin_offsetof({of}, {field}));\n");
        by_header.entry(header_of(of)).or_default().push_str(&line);
    }
    let offsets: BTreeMap<String, u64> =
        by_header.iter().flat_map(|(header, lines)| print_by_c(header, lines)).collect();
    for (of, field, number, args, param) in fields {
        let mut ours = None;
        // All bits of the modes are set, and the old call's bit is not: every field is looked at.
        let memory = Filled(if *number == 159 { 0x7f } else { 0xff });
        check(*number, args, &memory, &mut |region| {
            if region.param.to_string() == *param && ours.is_none() {
                ours = Some(region.address - AT);
            }
        });
        assert_eq!(ours, Some(offsets[&format!("{of}.{field}")]), "{of}.{field}");
    }
}
