//! The thread that watches resident memory: limits, and profiles when it grows.

use crate::heap::IS_OVER_LIMIT;
use crate::options::options;
use core::sync::atomic::Ordering::Relaxed;

const PERIOD_NS: u64 = 100_000_000;

/// Whether the options ask for it.
#[must_use]
pub fn is_wanted() -> bool {
    options().hard_rss_limit_mb > 0 || options().soft_rss_limit_mb > 0 || options().heap_profile
}

/// Resident megabytes.
fn resident_megabytes() -> i64 {
    let Some(text) = crate::sys::read_file(c"/proc/self/statm", 4096) else { return 0 };
    let text = core::str::from_utf8(&text).unwrap_or("");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).map_or(0, |pages| pages * 4 / 1024)
}

/// Watches for ever.
pub fn watch() -> ! {
    let mut profiled = 0;
    loop {
        leakscope_rt::raw::sleep_ns(PERIOD_NS);
        let now = resident_megabytes();
        let (hard, soft) = (options().hard_rss_limit_mb, options().soft_rss_limit_mb);
        if hard > 0 && now > hard {
            crate::out_pid!("AddressSanitizer: hard rss limit exhausted ({hard}Mb vs {now}Mb)\n");
            crate::statistics::print_process_map();
            crate::report::die();
        }
        if soft > 0 {
            let is_over = now > soft;
            if is_over != IS_OVER_LIMIT.swap(is_over, Relaxed) {
                let word = if is_over { "exhausted" } else { "unexhausted" };
                crate::out_pid!("AddressSanitizer: soft rss limit {word} ({soft}Mb vs {now}Mb)\n");
            }
        }
        if options().heap_profile && now > profiled + profiled / 10 {
            crate::out!("\n\nHEAP PROFILE at RSS {now}Mb\n");
            crate::statistics::print_profile(90, 20);
            profiled = now;
        }
    }
}
