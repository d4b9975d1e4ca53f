//! `leakscope kernel trace`: allocations of the running kernel that outlive a window, by stack.

mod cgroups;
mod sites;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_ebpf::kmem::{CHECK_EVERY, Config, Tracer};
use leakscope_ebpf::{Filter, Kind, Limits, Watch};
use leakscope_import::{TraceFacts, kernel_trace};
use leakscope_kernel::Places;
use leakscope_kernel::kallsyms::Kallsyms;

use super::names::Names;
use crate::flags::trace::KernelTraceArgs;
use crate::tracing::{self, Reports, Session, Target};

pub use cgroups::Cgroups;
pub use sites::{Kernel, guard_bytes};

/// Mean bytes between samples unless the user says otherwise.
const USUAL_SAMPLE_BYTES: u64 = 512 << 10;

/// Runs the subcommand.
///
/// # Errors
/// The kernel cannot be traced, and what to do; or a report cannot be written.
pub fn main(args: &KernelTraceArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut reports = Reports::open(&args.view, matches)?;
    let modules = sites::loaded_modules();
    let symbols = Kallsyms::read(&Places::default());
    let config = config(args, &symbols)?;
    let interrupts = leakscope_ebpf::interrupts::Interrupts::block().context("cannot wait for signals")?;
    let mut tracer = Tracer::start(&config)?;
    if !reports.is_quiet() {
        let names: Vec<&str> = tracer.kinds().iter().map(|kind| kind.name()).collect();
        eprintln!("leakscope: tracing {}; Ctrl-C ends it and reports", names.join(", "));
    }
    let mut target = Target::Kernel(sites::Kernel::new(symbols, modules));
    if args.watch.print_events {
        let mut events = tracer.take_events()?;
        return tracing::print_events(&mut tracer, &mut events, &args.watch, &interrupts, &target);
    }
    let mut session = Session::new(&args.watch, tracer.sample_bytes());
    let last = session.watch(&mut tracer, &mut target, &interrupts, !reports.is_quiet())?;
    let Target::Kernel(kernel) = &target else { unreachable!("it was made so") };
    let mut names = Names::new(&args.names, reports.view.symbols.clone(), true);
    let mut facts = session.facts(&last);
    facts = TraceFacts { executable: "the kernel".to_owned(), command_line: vec!["the kernel".to_owned()], ..facts };
    // Pages that hold another allocator's blocks are in those blocks' records.
    let own = last.groups.iter().filter(|group| group.backs.is_none());
    let traced: Vec<_> = own.map(|group| kernel.traced(group)).collect();
    let mut recorded = kernel_trace(&traced, &facts, &mut names);
    recorded.problems.append(&mut names.problems);
    let has_errors = reports.write(vec![recorded])?;
    tracing::print_last(&args.watch, &reports, &last, &session)?;
    Ok(reports.exit_code(has_errors))
}

fn config(args: &KernelTraceArgs, symbols: &Kallsyms) -> Result<Config> {
    let asked = [args.kmalloc, args.slab, args.pages, args.percpu, args.vmalloc];
    let all = asked.iter().all(|asked| !asked);
    let kinds = Kind::KERNEL.into_iter().zip(asked).filter(|(_, asked)| all || *asked).map(|(kind, _)| kind).collect();
    let filter = Filter {
        pid: args.pid,
        comm: args.comm.clone(),
        cgroup: args.cgroup.as_deref().map(Cgroups::find).transpose()?,
        module_text: args.module.as_deref().map(module_text).transpose()?,
    };
    let sample_bytes = args.watch.sample.unwrap_or(USUAL_SAMPLE_BYTES);
    let limits = limits(&args.watch, sample_bytes);
    Ok(Config { kinds, filter, limits, outermost_text: outermost_text(symbols), check_every: CHECK_EVERY })
}

/// How much is kept.
pub fn limits(watch: &crate::flags::trace::WatchArgs, sample_bytes: u64) -> Limits {
    let usual_blocks = if sample_bytes == 0 { 1 << 20 } else { 1 << 18 };
    Limits {
        // A rate below this would be one sample for almost each allocation, but estimates nonetheless.
        sample_bytes: if sample_bytes == 0 { 0 } else { sample_bytes.max(64) },
        blocks: watch.max_blocks.unwrap_or(usual_blocks),
        sites: watch.max_stacks,
        events_per_second: if watch.print_events { watch.events_per_second } else { 0 },
    }
}

/// Where the function lies that all system calls go through.
fn outermost_text(symbols: &Kallsyms) -> Option<(u64, u64)> {
    const OUTERMOST: &str = "do_syscall_64";
    let begin = symbols.iter().find(|symbol| symbol.name == OUTERMOST && symbol.module.is_empty())?.address;
    let end = symbols.iter().map(|symbol| symbol.address).filter(|&address| address > begin).min()?;
    Some((begin, end))
}

/// Where a module lies.
fn module_text(name: &str) -> Result<(u64, u64)> {
    let list = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    decode_module(&list, &name.replace('-', "_"))
        .with_context(|| format!("module {name} is not loaded, or its address is hidden; see /proc/modules as root"))
}

/// `name size users by state address` of /proc/modules.
fn decode_module(list: &str, name: &str) -> Option<(u64, u64)> {
    let line = list.lines().find(|line| line.split(' ').next() == Some(name))?;
    let mut words = line.split(' ');
    let bytes: u64 = words.nth(1)?.parse().ok()?;
    let begin = u64::from_str_radix(words.nth(3)?.strip_prefix("0x")?, 16).ok()?;
    (begin != 0).then(|| (begin, begin + bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_by_name() {
        let list = "leaky 16384 0 - Live 0xffffffffc0201000 (O)\nleaky_two 8192 1 a,b, Live 0xffffffffc0301000\n\
                    hidden 1 0 - Live 0x0000000000000000\n";
        assert_eq!(decode_module(list, "leaky"), Some((0xffff_ffff_c020_1000, 0xffff_ffff_c020_5000)));
        assert_eq!(decode_module(list, "leaky_two"), Some((0xffff_ffff_c030_1000, 0xffff_ffff_c030_3000)));
        assert_eq!(decode_module(list, "hidden"), None);
        assert_eq!(decode_module(list, "leak"), None);
    }
}
