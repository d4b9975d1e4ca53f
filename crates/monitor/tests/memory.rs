//! What a daemon takes over months, in compressed time: names come and go, values change, and the daemon stays small.

mod random;

use std::path::Path;

use leakscope_monitor::{Config, Watch};
use leakscope_sampling::Places;

const START: f64 = 1_700_000_000.0;
const STEP: f64 = 1200.0;
const DAY: usize = 72;
/// Programs that always run.
const STEADY: u32 = 15;
/// Names that come each time, and never again.
const JOBS: u32 = 5;
const DAYS: usize = 60;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn process(root: &Path, pid: u32, name: &str, kilobytes: u64) {
    let pages = kilobytes / 4;
    write(
        root,
        &format!("proc/{pid}/stat"),
        &format!("{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 987 1 {pages} 1\n"),
    );
    let status = format!(
        "Name: {name}\nVmRSS: {kilobytes} kB\nRssAnon: {kilobytes} kB\nRssShmem: 0 kB\nVmSwap: 0 kB\nThreads: 3\n"
    );
    write(root, &format!("proc/{pid}/status"), &status);
    std::fs::create_dir_all(root.join(format!("proc/{pid}/fd"))).unwrap();
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn months_of_names_that_come_and_go_take_no_more_than_weeks() {
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let root = folder.path();
    write(
        root,
        "proc/meminfo",
        "MemTotal: 32000000 kB\nMemAvailable: 16000000 kB\nSUnreclaim: 90000 kB\nVmallocUsed: 5000 kB\nPageTables: 9000 kB\nPercpu: 3000 kB\nKernelStack: 8000 kB\n",
    );
    write(root, "proc/uptime", "100000000.0 1.0\n");
    let config = Config::decode("pressure = 100\n[[watch]]\ntop = 60\n[[watch]]\nname = \"steady3\"\n").unwrap();
    let mut watch = Watch::new(config, Places::below(root));
    let mut random = random::xorshift();
    let mut taken = Vec::new();
    let mut most_known = 0;
    for step in 0..DAYS * DAY {
        for program in 0..STEADY {
            process(root, 100 + program, &format!("steady{program}"), 50_000 + random() % 9000);
        }
        for number in 0..JOBS {
            let name = format!("job{}", step * JOBS as usize + number as usize);
            process(root, 1000 + number, &name, 80_000 + random() % 90_000);
        }
        let pass = watch.pass(START + step as f64 * STEP);
        assert_eq!(pass.samples.len(), 5 + (STEADY + JOBS) as usize, "the kernel's five, and all programs");
        most_known = most_known.max(watch.known().len());
        if step % DAY == DAY - 1 {
            taken.push(resident_bytes());
        }
    }
    // 5 names in 20 minutes are 2,880 in 8 days, of which the newest 1,000 are known.
    assert!((800..=1100).contains(&most_known), "{most_known}");
    // The window of 32 days is full on the 35th day; of the longest one, bins of a day are added.
    let (middle, end) = (taken[34], taken[DAYS - 1]);
    let megabytes = [taken[0], middle, end].map(|bytes| bytes >> 20);
    eprintln!("resident MB after a day, 35 days and {DAYS} days: {megabytes:?}");
    assert!(end < middle + (3 << 20), "{taken:?}");
    assert!(end < 60 << 20, "{taken:?}");
}
