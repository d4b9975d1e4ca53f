//! The kernels: our own, built from Debian's sources, and Debian's for clouds; and our modules for each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use leakscope_e2e::fixtures_dir;

use super::{cache, packages};
use crate::step::{first_line, step};

/// Architectures whose sources are not unpacked: half a minute less.
const OTHER_ARCHITECTURES: &[&str] = &[
    "alpha",
    "arc",
    "arm",
    "arm64",
    "csky",
    "hexagon",
    "loongarch",
    "m68k",
    "microblaze",
    "mips",
    "nios2",
    "openrisc",
    "parisc",
    "powerpc",
    "riscv",
    "s390",
    "sh",
    "sparc",
    "xtensa",
];

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Small, with kmemleak.
    Own,
    /// Debian's `linux-image-cloud-amd64`.
    Stock,
}

impl Which {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Own, Self::Stock];

    pub(super) fn of(word: &str) -> Result<Self> {
        match word {
            "own" => Ok(Self::Own),
            "stock" => Ok(Self::Stock),
            _ => bail!("no kernel `{word}`; there are own and stock"),
        }
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Which it is.
    pub(crate) which: Which,
    /// Its release.
    pub(crate) release: String,
    /// What the emulator boots.
    pub(crate) image: PathBuf,
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// Our modules for it, with debug information.
    pub(crate) modules: PathBuf,
}

/// Builds what is missing of a kernel.
///
/// # Errors
/// A build fails.
pub(super) fn prepare(which: Which) -> Result<Kernel> {
    match which {
        Which::Own => own(),
        Which::Stock => stock(),
    }
}

/// FNV-1a: a name for what a build was made from, no more.
fn hash(parts: &[&[u8]]) -> String {
    let mut value: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.iter().chain(&[0])) {
        value = (value ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{value:016x}")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: the path is not UTF-8", path.display()))
}

/// The archive of the newest sources that are installed.
fn archive() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/src")
        .context("read /usr/src")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("linux-source-") && name.ends_with(".tar.xz")
        })
        .collect();
    // 6.12 comes behind 6.1: by number, not by letter.
    let version = |path: &PathBuf| -> Vec<u32> {
        let name = path.to_string_lossy().into_owned();
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    found.sort_by_key(version);
    found.pop().with_context(|| format!("no sources in /usr/src; next: apt-get install {}", packages::SOURCES[0]))
}

/// The fragment of a configuration that our own kernel is built from.
fn fragment() -> PathBuf {
    fixtures_dir().join("kernel/vm.config")
}

/// What our own kernel is built from, as a name.
fn own_key(archive: &Path) -> Result<String> {
    let config = fs::read(fragment()).with_context(|| format!("read {}", fragment().display()))?;
    let length = fs::metadata(archive)?.len().to_string();
    let compiler = first_line(&["gcc", "--version"]);
    Ok(hash(&[&config, text(archive)?.as_bytes(), length.as_bytes(), compiler.as_bytes()]))
}

/// Whether booting needs no build of a kernel first.
pub(super) fn are_built() -> bool {
    let own = archive().and_then(|archive| own_key(&archive)).map(|key| cache().join(format!("own-{key}")));
    let stock = stock_package().map(|package| cache().join(package));
    [own, stock].iter().all(|place| place.as_ref().is_ok_and(|place| place.join("leakscope.done").exists()))
}

fn own() -> Result<Kernel> {
    let archive = archive()?;
    let key = own_key(&archive)?;
    let build = cache().join(format!("own-{key}"));
    let release_file = build.join("include/config/kernel.release");
    if !build.join("leakscope.done").exists() {
        build_own(&archive, &fragment(), &build)?;
    }
    let release = fs::read_to_string(&release_file).with_context(|| format!("read {}", release_file.display()))?;
    let release = release.trim().to_owned();
    let modules = modules(&build, &key)?;
    Ok(Kernel {
        which: Which::Own,
        release,
        image: build.join("arch/x86/boot/bzImage"),
        config: build.join(".config"),
        modules,
    })
}

fn build_own(archive: &Path, fragment: &Path, build: &Path) -> Result<()> {
    fs::create_dir_all(cache()).with_context(|| format!("create {}", cache().display()))?;
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let source = cache().join(name.trim_end_matches(".tar.xz"));
    if !source.join("leakscope.unpacked").exists() {
        let _ = fs::remove_dir_all(&source);
        let mut words =
            vec!["tar".to_owned(), "-C".into(), text(&cache())?.into(), "-xf".into(), text(archive)?.into()];
        // Their Kconfig files are read all the same.
        let endings = ["c", "h", "S", "dts*"];
        let of_one = |name: &&str| endings.map(|ending| format!("--exclude=*/arch/{name}/*.{ending}"));
        words.extend(OTHER_ARCHITECTURES.iter().flat_map(of_one));
        words.push("--exclude=*/tools/testing/*".to_owned());
        step(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        fs::write(source.join("leakscope.unpacked"), "")?;
    }
    let _ = fs::remove_dir_all(build);
    fs::create_dir_all(build)?;
    let (source, output) = (text(&source)?, format!("O={}", text(build)?));
    let jobs = format!("-j{}", std::thread::available_parallelism().map_or(2, usize::from));
    let make = ["make", "--silent", "-C", source, &output];
    // tinyconfig, then ours over it: what a line of the fragment needs and does not get is an error below.
    step(&[&make[..], &["tinyconfig"]].concat())?;
    let mut config = fs::read_to_string(build.join(".config"))?;
    config += &fs::read_to_string(fragment)?;
    fs::write(build.join(".config"), config)?;
    step(&[&make[..], &["olddefconfig"]].concat())?;
    check_config(&fs::read_to_string(fragment)?, &fs::read_to_string(build.join(".config"))?)?;
    step(&[&make[..], &[&jobs, "bzImage", "modules"]].concat())?;
    // Objects are two thirds of the tree, and no module needs them; those of the build's own tools stay.
    let prune = ["(", "-path", "./scripts", "-o", "-path", "./tools", ")", "-prune", "-o"];
    let objects = ["-type", "f", "(", "-name", "*.o", "-o", "-name", "*.a", "-o", "-name", ".*.cmd", ")", "-delete"];
    let status = Command::new("find").arg(".").args(prune).args(objects).current_dir(build).status();
    status.context("start find")?;
    fs::write(build.join("leakscope.done"), "")?;
    Ok(())
}

/// Whether a configuration has what was asked for: an option that depends on a missing one goes silently.
fn check_config(wanted: &str, config: &str) -> Result<()> {
    let has = |line: &&str| config.lines().any(|other| other == *line);
    let missing: Vec<&str> =
        wanted.lines().filter(|line| line.starts_with("CONFIG_")).filter(|line| !has(line)).collect();
    if missing.is_empty() { Ok(()) } else { bail!("the kernel's configuration lacks {}", missing.join(", ")) }
}

/// Our modules, built for the kernel of a build folder.
fn modules(build: &Path, key: &str) -> Result<PathBuf> {
    let folder = fixtures_dir().join("kernel/modules");
    let mut sources: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("read {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    sources.sort();
    let contents = sources.iter().map(fs::read).collect::<std::io::Result<Vec<_>>>()?;
    let parts: Vec<&[u8]> = contents.iter().map(Vec::as_slice).chain([key.as_bytes()]).collect();
    let place = cache().join(format!("modules-{}", hash(&parts)));
    if place.join("leakscope.done").exists() {
        return Ok(place);
    }
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place)?;
    for source in &sources {
        fs::copy(source, place.join(source.file_name().unwrap_or_default()))?;
    }
    step(&["make", "--silent", "-C", text(build)?, &format!("M={}", text(&place)?), "modules"])?;
    fs::write(place.join("leakscope.done"), "")?;
    Ok(place)
}

/// The package of the kernel that `linux-image-cloud-amd64` means now.
fn stock_package() -> Result<String> {
    let output =
        Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]).output().context("start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.next().map(str::to_owned).context("apt knows no linux-image-cloud-amd64")
}

fn stock() -> Result<Kernel> {
    let package = stock_package()?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let place = cache().join(&package);
    if !place.join("leakscope.done").exists() {
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place)?;
        // Unpacked, not installed: this machine's own boot is left alone.
        let shown = text(&place)?;
        step(&[
            "sh",
            "-c",
            &format!("cd '{shown}' && apt-get download --quiet {package} && dpkg-deb -x *.deb . && rm *.deb"),
        ])?;
        fs::write(place.join("leakscope.done"), "")?;
    }
    let headers = PathBuf::from(format!("/usr/src/linux-headers-{release}"));
    if !headers.exists() {
        bail!("{} is missing; next: apt-get install --only-upgrade linux-headers-cloud-amd64", headers.display());
    }
    let modules = modules(&headers, &release)?;
    Ok(Kernel {
        which: Which::Stock,
        image: place.join(format!("boot/vmlinuz-{release}")),
        config: place.join(format!("boot/config-{release}")),
        release,
        modules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_went_is_noticed() {
        let wanted = "# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"x\"\n";
        assert!(check_config(wanted, "CONFIG_A=y\nCONFIG_S=\"x\"\n").is_ok());
        let error = check_config(wanted, "# CONFIG_A is not set\nCONFIG_S=\"x\"\n").unwrap_err();
        assert!(error.to_string().ends_with("lacks CONFIG_A=y"));
    }

    #[test]
    fn names_of_builds_differ() {
        assert_ne!(hash(&[b"a", b"b"]), hash(&[b"ab", b""]));
        assert_eq!(hash(&[b"a"]), hash(&[b"a"]));
    }
}
