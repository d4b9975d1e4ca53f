//! `bench fingerprints`: the fixtures built in other ways, and how many findings keep their fingerprint.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use leakscope_e2e::builds::{Build, Finding, Kept, collisions, compare, findings};
use leakscope_e2e::{Fixture, fixtures_dir};

/// What is compared: first the build that the second one must agree with.
const PAIRS: [(Build, Build); 9] = [
    (Build::PLAIN, Build::OPTIMISED),
    (Build::PLAIN, Build::CLANG),
    (Build::OPTIMISED, Build::CLANG),
    (Build::OPTIMISED, Build::STRIPPED),
    (Build::OPTIMISED, Build::NO_PIE),
    (Build::OPTIMISED, Build::MOVED),
    (Build::OPTIMISED, Build::SHIFTED),
    (Build::PLAIN, Build::ALL),
    (Build::PLAIN, Build::CLANG_ALL),
];
/// Share of the findings with the same call path that must keep their fingerprint.
const LEAST_SHARE: f64 = 0.95;

/// Builds and runs everything; gives the table.
///
/// # Errors
/// A program cannot be built or run, two sites collide, or a share is too low.
pub fn table() -> Result<String> {
    let dir = tempfile::tempdir()?;
    let pairs: Vec<(Build, Build)> =
        PAIRS.into_iter().filter(|(before, after)| before.is_possible() && after.is_possible()).collect();
    let mut kept = vec![Kept::default(); pairs.len()];
    let mut collided = Vec::new();
    let fixtures = fixtures()?;
    for fixture in &fixtures {
        let mut known: Vec<(Build, BTreeSet<Finding>)> = Vec::new();
        for ((before, after), kept) in pairs.iter().zip(&mut kept) {
            for build in [before, after] {
                if !known.iter().any(|(other, _)| other == build) {
                    let found = findings(fixture, build, dir.path())?;
                    let of_this = collisions(&found);
                    collided.extend(of_this.iter().map(|line| format!("{}, {}: {line}", fixture.name(), build.name)));
                    known.push((*build, found));
                }
            }
            let of = |build: &Build| &known.iter().find(|(other, _)| other == build).expect("just found").1;
            let mut of_this = compare(of(before), of(after));
            of_this.lost.iter_mut().for_each(|line| *line = format!("{}: {line}", fixture.name()));
            kept.add(of_this);
        }
        eprintln!("  {}: {} findings", fixture.name(), known.first().map_or(0, |(_, found)| found.len()));
    }
    for line in kept.iter().flat_map(|kept| &kept.lost) {
        eprintln!("  lost: {line}");
    }
    let text = written(&pairs, &kept, fixtures.len(), &collided);
    let low: Vec<&str> = pairs
        .iter()
        .zip(&kept)
        .filter(|(_, kept)| kept.share() < LEAST_SHARE)
        .map(|((_, after), _)| after.name)
        .collect();
    if !collided.is_empty() || !low.is_empty() {
        bail!("{text}\nless than {LEAST_SHARE} kept: {}\ncollisions: {}", low.join("; "), collided.join("\n"));
    }
    Ok(text)
}

fn written(pairs: &[(Build, Build)], kept: &[Kept], programs: usize, collided: &[String]) -> String {
    let mut text = format!(
        "{programs} programs of `fixtures`, leaks and wrong calls. *Same path*: the functions from the allocation to `main`, \
         inlined ones included, have the same bare names in both builds (tail calls and calls that one compiler leaves out \
         make another path). *Raw* counts all findings, whatever their path. At least 95 % of those with the same path \
         are to keep their fingerprint.\n\n\
         | build | compared with | findings | same path | kept | share | raw |\n|---|---|---|---|---|---|---|\n"
    );
    for ((before, after), kept) in pairs.iter().zip(kept) {
        text += &format!(
            "| {} | {} | {} | {} | {} | **{:.1} %** | {:.1} % |\n",
            after.name,
            before.name,
            kept.findings,
            kept.same_path,
            kept.kept,
            100.0 * kept.share(),
            100.0 * kept.raw_share()
        );
    }
    text + &format!("\nFingerprints that two different call paths of one build share: {}.\n", collided.len())
}

/// Every program with a table, and the demo; not those that need an allocator that may not be installed.
fn fixtures() -> Result<Vec<Fixture>> {
    let mut sources = vec![fixtures_dir().join("demo/orders.cpp")];
    for folder in ["c", "cpp"] {
        for entry in std::fs::read_dir(fixtures_dir().join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "c" || ending == "cpp") {
                sources.push(path);
            }
        }
    }
    sources.sort();
    let all: Result<Vec<Fixture>> = sources.iter().map(|source| Fixture::read(source)).collect();
    Ok(all?.into_iter().filter(|fixture| fixture.requires.is_none()).collect())
}
