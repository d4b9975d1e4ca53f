//! The machine's memory, and what of it the kernel has for itself. Source: proc_meminfo(5), proc_slabinfo(5), psi.rst.

use crate::Places;
use crate::cgroup::decode_pressure;

/// What the kernel says of the machine's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Machine {
    /// All of it.
    pub total_bytes: u64,
    /// What programs can still get without swapping.
    pub available_bytes: u64,
    /// Slabs that cannot be reclaimed.
    pub slab_unreclaimable_bytes: u64,
    /// Slabs that can.
    pub slab_reclaimable_bytes: u64,
    /// vmalloc areas in use.
    pub vmalloc_bytes: u64,
    /// Page tables.
    pub page_table_bytes: u64,
    /// Per-CPU memory.
    pub percpu_bytes: u64,
    /// Stacks of the kernel.
    pub stack_bytes: u64,
    /// Share of the last 10 seconds in which some task waited for memory, per cent.
    pub some_pressure: Option<f64>,
    /// Likewise: all.
    pub full_pressure: Option<f64>,
}

/// A slab cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slab {
    /// Its name.
    pub name: String,
    /// Bytes of its objects, used or not.
    pub bytes: u64,
    /// Objects in use.
    pub objects: u64,
}

/// The machine now; `None` when `/proc/meminfo` cannot be read.
pub fn read_machine(places: &Places) -> Option<Machine> {
    let mut machine = decode_meminfo(&places.read("/proc/meminfo")?);
    let pressure = places.read("/proc/pressure/memory").unwrap_or_default();
    (machine.some_pressure, machine.full_pressure) = decode_pressure(&pressure);
    Some(machine)
}

fn decode_meminfo(text: &str) -> Machine {
    let mut machine = Machine::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let number = value.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        let bytes = number.unwrap_or(0).saturating_mul(1024);
        match key {
            "MemTotal" => machine.total_bytes = bytes,
            "MemAvailable" => machine.available_bytes = bytes,
            "SUnreclaim" => machine.slab_unreclaimable_bytes = bytes,
            "SReclaimable" => machine.slab_reclaimable_bytes = bytes,
            "VmallocUsed" => machine.vmalloc_bytes = bytes,
            "PageTables" => machine.page_table_bytes = bytes,
            "Percpu" => machine.percpu_bytes = bytes,
            "KernelStack" => machine.stack_bytes = bytes,
            _ => {}
        }
    }
    machine
}

/// The slab caches, largest first; empty when they may not be read: root may.
pub fn read_slabs(places: &Places) -> Vec<Slab> {
    decode_slabs(&places.read("/proc/slabinfo").unwrap_or_default())
}

/// `name <active_objs> <num_objs> <objsize> ...`
fn decode_slabs(text: &str) -> Vec<Slab> {
    let mut slabs: Vec<Slab> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("slabinfo"))
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let name = fields.next()?.to_owned();
            let mut number = || fields.next()?.parse::<u64>().ok();
            let (active, objects, size) = (number()?, number()?, number()?);
            Some(Slab { name, bytes: objects.saturating_mul(size), objects: active })
        })
        .collect();
    slabs.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    slabs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        let machine = read_machine(&Places::default()).unwrap();
        assert!(machine.total_bytes > 100 << 20 && machine.available_bytes <= machine.total_bytes, "{machine:?}");
        assert!(machine.slab_unreclaimable_bytes > 0 && machine.stack_bytes > 0, "{machine:?}");
    }

    #[test]
    fn slabs_by_size() {
        let text =
            "slabinfo - version: 2.1\n# name <active_objs>\nsmall 5 10 8 512 1 : t\nbig 100 200 1024 4\nbroken 1\n";
        let slabs = decode_slabs(text);
        assert_eq!(slabs[0], Slab { name: "big".into(), bytes: 204_800, objects: 100 });
        assert_eq!((slabs[1].name.as_str(), slabs.len()), ("small", 2));
    }
}
