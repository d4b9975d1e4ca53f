//! From the tables to what is outstanding, with its uncertainty.
//!
//! A sampled block stands for `w` allocations of its size, `w` the inverse of the probability that it was sampled. The
//! sum of `w` over sampled blocks estimates the number of allocations without bias (Horvitz and Thompson, 1952), and
//! the sum of `w(w - 1)` is an unbiased estimate of the variance, since each allocation is sampled independently of the
//! others: the bytes to the next sample are drawn from an exponential distribution, which has no memory.

use std::collections::{BTreeMap, HashMap};

use crate::layout::{Block, RawSite, Sums, WEIGHT_ONE, text};
use crate::load::{self, Maps, RESERVED_SITES};
use crate::{Error, Kind, sys};

/// An estimated number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The estimate; exact when its variance is zero.
    pub value: f64,
    /// Its estimated variance.
    pub variance: f64,
}

impl Estimate {
    /// Half the width of the 95 % confidence interval.
    pub fn margin(self) -> f64 {
        1.96 * self.variance.sqrt()
    }

    fn add(&mut self, amount: f64, weight: f64) {
        self.value += amount * weight;
        self.variance += amount * amount * weight * (weight - 1.0);
    }

    /// Adds another, independent estimate.
    pub fn merge(&mut self, other: Self) {
        self.value += other.value;
        self.variance += other.variance;
    }
}

/// What outstanding blocks of one owner add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Owner {
    /// Blocks.
    pub blocks: Estimate,
    /// Bytes as requested.
    pub bytes: Estimate,
    /// Bytes as the allocator rounds them.
    pub usable: Estimate,
}

impl Owner {
    fn add(&mut self, block: &Block) {
        let weight = (block.weight as f64 / WEIGHT_ONE).max(1.0);
        self.blocks.add(1.0, weight);
        self.bytes.add(block.requested as f64, weight);
        self.usable.add(block.usable as f64, weight);
    }

    /// Adds what another owner has.
    pub fn merge(&mut self, other: &Self) {
        self.blocks.merge(other.blocks);
        self.bytes.merge(other.bytes);
        self.usable.merge(other.usable);
    }
}

/// An allocation site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Name of the slab cache, empty when there is none.
    pub cache: String,
    /// Return addresses, innermost first; empty: the stack was not kept.
    pub addresses: Vec<u64>,
    /// The program that the addresses are of, 0 for the kernel.
    pub tgid: u32,
}

/// Outstanding blocks of one site.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveSite {
    /// Number of the site.
    pub number: u32,
    /// Of which memory.
    pub kind: Kind,
    /// Where.
    pub site: std::sync::Arc<Site>,
    /// How much.
    pub live: Owner,
    /// Blocks in the table; each stands for one or more.
    pub sampled: u64,
    /// Age of the oldest, nanoseconds.
    pub oldest_ns: u64,
    /// Age of the youngest, nanoseconds.
    pub youngest_ns: u64,
    /// Process that allocated most of the blocks in the table.
    pub tgid: u32,
    /// What the site allocated since the start.
    pub sums: SiteSums,
}

/// What a site allocated since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SiteSums {
    /// Blocks.
    pub blocks: f64,
    /// Bytes as requested.
    pub bytes: f64,
    /// Bytes as the allocator rounds them.
    pub usable: f64,
    /// Blocks in the table whose address was allocated again, so that their release was not seen. Where there are some,
    /// what looks outstanding may be released too.
    pub missed_frees: u64,
}

/// What is outstanding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// When, CLOCK_MONOTONIC, nanoseconds.
    pub at_ns: u64,
    /// By site, most bytes first.
    pub sites: Vec<LiveSite>,
    /// By control group.
    pub cgroups: Vec<(u64, Owner)>,
    /// By process.
    pub processes: Vec<(u32, Owner)>,
    /// Blocks in the table, of any age.
    pub tracked: u64,
    /// Everything outstanding, of any age, by kind.
    pub all: BTreeMap<Kind, Owner>,
}

/// Sites that were read already: they never change.
#[derive(Default)]
pub(crate) struct SiteCache {
    known: HashMap<u32, (Kind, std::sync::Arc<Site>)>,
}

impl SiteCache {
    fn get(&mut self, maps: &Maps, number: u32) -> Result<(Kind, std::sync::Arc<Site>), Error> {
        if let Some(known) = self.known.get(&number) {
            return Ok(known.clone());
        }
        if number < RESERVED_SITES {
            let kind = Kind::from_number(number).unwrap_or(Kind::User);
            return Ok((kind, std::sync::Arc::default()));
        }
        let raw: Option<RawSite> = sys::read_element(maps.fd("sites"), number)
            .map_err(|error| Error::Command { what: "read a stack", error })?;
        let raw = raw.unwrap_or_default();
        let frames = (raw.frames as usize).min(raw.ips.len());
        let kind = Kind::from_number(raw.kind).unwrap_or(Kind::User);
        // Of programs the number of the process stands where that of the cache is.
        let tgid = if kind == Kind::User { raw.cache as u32 } else { 0 };
        let site = Site { cache: text(&raw.name), addresses: raw.ips[..frames].to_vec(), tgid };
        let found = (kind, std::sync::Arc::new(site));
        self.known.insert(number, found.clone());
        Ok(found)
    }
}

#[derive(Default)]
struct Group {
    live: Owner,
    sampled: u64,
    first_ns: u64,
    last_ns: u64,
    /// Majority vote: the candidate, and by how much it leads.
    tgid: u32,
    lead: u64,
}

/// Knows the sites of blocks.
pub(crate) trait Sites {
    /// The number of a block's site.
    fn number(&mut self, key: u64, block: &Block) -> u32;

    /// A site, and what it allocated.
    fn site(&mut self, maps: &Maps, number: u32) -> Result<(Kind, std::sync::Arc<Site>, SiteSums), Error>;
}

/// Sites whose stacks the kernel's programs keep.
impl Sites for SiteCache {
    fn number(&mut self, _key: u64, block: &Block) -> u32 {
        block.site
    }

    fn site(&mut self, maps: &Maps, number: u32) -> Result<(Kind, std::sync::Arc<Site>, SiteSums), Error> {
        let (kind, site) = self.get(maps, number)?;
        Ok((kind, site, site_sums(maps, number)?))
    }
}

pub(crate) fn read(maps: &Maps, sites: &mut dyn Sites, min_age_ns: u64) -> Result<Snapshot, Error> {
    let mut blocks: Vec<(u64, Block)> = load::read_hash(maps.fd("blocks"))?;
    if let Some(table) = &maps.table {
        table.append(&mut blocks);
    }
    let at_ns = load::monotonic_ns();
    let mut groups: HashMap<u32, Group> = HashMap::new();
    let mut cgroups: HashMap<u64, Owner> = HashMap::new();
    let mut processes: HashMap<u32, Owner> = HashMap::new();
    let mut snapshot = Snapshot { at_ns, tracked: blocks.len() as u64, ..Snapshot::default() };
    for (key, block) in &blocks {
        if let Some(kind) = Kind::from_number(block.kind) {
            snapshot.all.entry(kind).or_default().add(block);
        }
        if at_ns.saturating_sub(block.born_ns) < min_age_ns {
            continue;
        }
        let group = groups.entry(sites.number(*key, block)).or_default();
        group.live.add(block);
        group.first_ns = if group.sampled == 0 { block.born_ns } else { group.first_ns.min(block.born_ns) };
        group.last_ns = group.last_ns.max(block.born_ns);
        group.sampled += 1;
        match group.lead {
            0 => (group.tgid, group.lead) = (block.tgid, 1),
            _ if group.tgid == block.tgid => group.lead += 1,
            _ => group.lead -= 1,
        }
        cgroups.entry(block.cgroup).or_default().add(block);
        processes.entry(block.tgid).or_default().add(block);
    }
    for (number, group) in groups {
        let (kind, site, sums) = sites.site(maps, number)?;
        snapshot.sites.push(LiveSite {
            number,
            kind,
            site,
            live: group.live,
            sampled: group.sampled,
            oldest_ns: at_ns.saturating_sub(group.first_ns),
            youngest_ns: at_ns.saturating_sub(group.last_ns),
            tgid: group.tgid,
            sums,
        });
    }
    snapshot.sites.sort_by(|a, b| b.live.bytes.value.total_cmp(&a.live.bytes.value).then(a.number.cmp(&b.number)));
    let by_bytes = |a: &Owner, b: &Owner| b.usable.value.total_cmp(&a.usable.value);
    snapshot.cgroups = cgroups.into_iter().collect();
    snapshot.cgroups.sort_by(|a, b| by_bytes(&a.1, &b.1).then(a.0.cmp(&b.0)));
    snapshot.processes = processes.into_iter().collect();
    snapshot.processes.sort_by(|a, b| by_bytes(&a.1, &b.1).then(a.0.cmp(&b.0)));
    Ok(snapshot)
}

fn site_sums(maps: &Maps, number: u32) -> Result<SiteSums, Error> {
    let values: Vec<Sums> = sys::read_per_cpu(maps.fd("site_sums"), number, maps.processors)
        .map_err(|error| Error::Command { what: "read sums", error })?;
    let sum = |field: fn(&Sums) -> u64| values.iter().map(field).fold(0, u64::wrapping_add) as f64;
    Ok(SiteSums {
        blocks: sum(|sums| sums.blocks) / WEIGHT_ONE,
        bytes: sum(|sums| sums.requested),
        usable: sum(|sums| sums.usable),
        missed_frees: values.iter().map(|sums| sums.missed_frees).sum(),
    })
}

pub(crate) fn names(maps: &Maps) -> Result<BTreeMap<u32, String>, Error> {
    let all: Vec<(u32, [u8; 16])> = load::read_hash(maps.fd("names"))?;
    Ok(all.into_iter().map(|(tgid, comm)| (tgid, text(&comm))).collect())
}
