//! Separate debug files, stripped programs, replaced and damaged files, and debuginfod.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Aliases, addresses, build, folder, local, module, oracle, resolve, run};
use leakscope_symbols::{Debuginfod, ModuleFile, Options, Source, Symbolizer, read_build_id};

struct Stripped {
    folder: PathBuf,
    /// With debug info.
    full: PathBuf,
    /// Without debug info and `.symtab`.
    stripped: PathBuf,
    /// The debug info alone.
    debug: PathBuf,
}

fn stripped(name: &str) -> Stripped {
    let folder = folder(name);
    let full = build(&folder, "g++", &["-g", "-rdynamic"]);
    run(&folder, "objcopy", &["--only-keep-debug", "app", "app.debug"], "");
    run(&folder, "strip", &["app", "-o", "stripped"], "");
    Stripped { full, stripped: folder.join("stripped"), debug: folder.join("app.debug"), folder }
}

/// Moves a debug file into the build-id tree of a debug directory.
fn install(debug: &Path, debug_dir: &Path) {
    let id: String = read_build_id(debug).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let place = debug_dir.join(".build-id").join(&id[..2]).join(format!("{}.debug", &id[2..]));
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::rename(debug, place).unwrap();
}

fn assert_full_frames(options: Options, module: &ModuleFile, full: &Path, expected: Source) {
    let addresses = addresses(full, 11);
    let (frames, source) = resolve(options, module, &addresses);
    assert_eq!(source, expected);
    let truth = oracle(full, "linkage", &addresses);
    let aliases = Aliases::of(full);
    for ((address, frames), truth) in addresses.iter().zip(&frames).zip(&truth) {
        aliases.check(*address, frames, truth);
    }
}

#[test]
fn build_id_tree() {
    let files = stripped("build-id");
    let debug_dir = files.folder.join("debug");
    install(&files.debug, &debug_dir);
    assert_full_frames(local(&debug_dir), &module(&files.stripped), &files.full, Source::Dwarf);
    // The module is gone, and its build id still leads to the names.
    let gone = ModuleFile { path: files.folder.join("gone"), ..module(&files.stripped) };
    assert_full_frames(local(&debug_dir), &gone, &files.full, Source::Dwarf);
}

#[test]
fn debug_link_in_each_folder() {
    let files = stripped("debug-link");
    run(&files.folder, "objcopy", &["--add-gnu-debuglink=app.debug", "stripped", "linked"], "");
    // Without a build id the checksum decides.
    run(&files.folder, "objcopy", &["--remove-section=.note.gnu.build-id", "linked", "linked-by-crc"], "");
    let debug_dir = files.folder.join("debug");
    let below = debug_dir.join(files.folder.canonicalize().unwrap().strip_prefix("/").unwrap());
    std::fs::create_dir_all(&below).unwrap();
    std::fs::create_dir_all(files.folder.join(".debug")).unwrap();
    let mut place = files.debug.clone();
    for next in [files.debug.clone(), files.folder.join(".debug/app.debug"), below.join("app.debug")] {
        std::fs::rename(&place, &next).unwrap();
        place = next;
        assert_full_frames(local(&debug_dir), &module(&files.folder.join("linked")), &files.full, Source::Dwarf);
    }
    let by_crc = ModuleFile { path: files.folder.join("linked-by-crc"), build_id: None };
    assert_full_frames(local(&debug_dir), &by_crc, &files.full, Source::Dwarf);
    let mut wrong = std::fs::read(&place).unwrap();
    *wrong.last_mut().unwrap() ^= 1;
    std::fs::write(&place, wrong).unwrap();
    let (_, source) = resolve(local(&debug_dir), &by_crc, &[]);
    assert_eq!(source, Source::SymbolTable, "a debug file with another checksum must not be used");
}

/// What `nm` says of the symbol at each address that is one.
fn symbols_at(module: &Path, dynamic: &[&str]) -> Vec<(u64, String)> {
    let listing =
        run(Path::new("/"), "nm", &[dynamic, &["--defined-only", "-S", module.to_str().unwrap()]].concat(), "");
    let mut symbols = Vec::new();
    for line in listing.lines() {
        if let [start, _, "t" | "T" | "W" | "w" | "i", name] = line.split_whitespace().collect::<Vec<_>>()[..] {
            symbols.push((u64::from_str_radix(start, 16).unwrap(), name.split('@').next().unwrap().to_owned()));
        }
    }
    symbols
}

#[test]
fn stripped_programs_have_their_dynamic_symbols() {
    let files = stripped("stripped");
    let symbols = symbols_at(&files.stripped, &["-D"]);
    assert!(symbols.len() > 10, "{symbols:?}");
    let addresses: Vec<u64> = symbols.iter().map(|symbol| symbol.0).collect();
    let (frames, source) = resolve(local(&files.folder), &module(&files.stripped), &addresses);
    assert_eq!(source, Source::SymbolTable);
    for ((address, _), frames) in symbols.iter().zip(&frames) {
        let [frame] = &frames[..] else { panic!("{address:#x}: {frames:?}") };
        let mut same: Vec<_> =
            symbols.iter().filter(|other| other.0 == *address).map(|other| other.1.as_str()).collect();
        same.sort_by_key(|name| (name.len(), *name));
        assert_eq!(frame.linkage_name.as_deref(), Some(same[0]));
        assert_eq!((frame.line, frame.inlined), (None, false));
    }
    // Static functions were stripped, and no neighbour may lend them its name.
    let hidden = symbols_at(&files.full, &[]).into_iter().find(|symbol| symbol.1.contains("sorted_middle")).unwrap();
    let (frames, _) = resolve(local(&files.folder), &module(&files.stripped), &[hidden.0]);
    assert_eq!(frames, [[]]);
}

#[test]
fn mini_debug_info() {
    let files = stripped("mini");
    run(&files.folder, "objcopy", &["--strip-debug", "app.debug", "mini"], "");
    run(&files.folder, "xz", &["-k", "mini"], "");
    run(&files.folder, "objcopy", &["--add-section=.gnu_debugdata=mini.xz", "stripped", "with-mini"], "");
    let symbols = symbols_at(&files.full, &[]);
    let hidden = symbols.iter().find(|symbol| symbol.1.contains("sorted_middle")).unwrap();
    let (frames, source) = resolve(local(&files.folder), &module(&files.folder.join("with-mini")), &[hidden.0 + 3]);
    assert_eq!(source, Source::MiniDebugInfo);
    assert_eq!(frames[0][0].linkage_name.as_deref(), Some(hidden.1.as_str()));
    assert_eq!(frames[0][0].function, "sorted_middle(std::vector<int, std::allocator<int> >)");
}

#[test]
fn a_replaced_module_gives_no_names() {
    let files = stripped("replaced");
    let recorded = ModuleFile { path: files.full.clone(), build_id: Some(vec![7; 20]) };
    let addresses = addresses(&files.full, 50);
    let (frames, source) = resolve(local(&files.folder), &recorded, &addresses);
    assert_eq!(source, Source::Replaced);
    assert!(frames.iter().all(Vec::is_empty));
    let missing = ModuleFile { path: files.folder.join("missing"), build_id: None };
    let (frames, source) = resolve(local(&files.folder), &missing, &addresses);
    assert_eq!(source, Source::Missing);
    assert!(frames.iter().all(Vec::is_empty));
}

/// Serves one file at one path, 404 for all else, and counts the requests.
fn serve(path: String, body: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(request) = lines.next() else {
                continue;
            };
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            counter.fetch_add(1, Ordering::SeqCst);
            let found = request.split(' ').nth(1) == Some(&path);
            let (status, body) = if found { ("200 OK", &body[..]) } else { ("404 Not Found", &[][..]) };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    (url, requests)
}

fn from_server(urls: &[&str], cache: &Path) -> Options {
    let urls = urls.iter().map(|&url| url.to_owned()).collect();
    let debuginfod = Debuginfod { urls, cache_dir: cache.to_path_buf(), timeout: Duration::from_secs(20) };
    Options { debug_dirs: Vec::new(), debuginfod: Some(debuginfod), demangle: true }
}

#[test]
fn debuginfod_downloads_once() {
    let files = stripped("debuginfod");
    let id: String = read_build_id(&files.stripped).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let (url, requests) = serve(format!("/buildid/{id}/debuginfo"), std::fs::read(&files.debug).unwrap());
    let cache = files.folder.join("cache");
    // The first server is dead: port 1 of the loopback refuses.
    let options = from_server(&["http://127.0.0.1:1/", &url], &cache);
    assert_full_frames(options.clone(), &module(&files.stripped), &files.full, Source::Debuginfod);
    assert_full_frames(options, &module(&files.stripped), &files.full, Source::Debuginfod);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    let cached: Vec<_> = std::fs::read_dir(cache.join(&id)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(cached, ["debuginfo"]);
}

#[test]
fn debuginfod_remembers_that_nobody_has_it() {
    let files = stripped("debuginfod-404");
    let (url, requests) = serve("/none".to_owned(), Vec::new());
    let options = from_server(&[&url], &files.folder.join("cache"));
    for _ in 0..3 {
        assert_eq!(resolve(options.clone(), &module(&files.stripped), &[]).1, Source::SymbolTable);
    }
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[test]
fn debuginfod_answers_of_another_build_are_refused() {
    let files = stripped("debuginfod-wrong");
    let id: String = read_build_id(&files.stripped).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let (url, _) = serve(format!("/buildid/{id}/debuginfo"), b"<html>log in first</html>".to_vec());
    let options = from_server(&[&url], &files.folder.join("cache"));
    assert_eq!(resolve(options, &module(&files.stripped), &[]).1, Source::SymbolTable);
}

/// Flips bytes and cuts files: names may be lost or wrong then, but nothing panics, hangs or allocates without bound.
#[test]
fn damaged_files_never_panic() {
    let files = stripped("damaged");
    let addresses = addresses(&files.full, 40);
    let good = std::fs::read(&files.full).unwrap();
    let victim = files.folder.join("victim");
    let mut state = 42_u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    let header_area = good.len() - good.len().min(4000);
    for round in 0..400 {
        let mut bad = good.clone();
        match round % 4 {
            // The file header, the section headers at the end, anywhere, and a cut.
            0 => (0..1 + random(4)).for_each(|_| bad[4 + random(60)] = random(256) as u8),
            1 => (0..1 + random(20))
                .for_each(|_| bad[header_area + random(good.len() - header_area)] = random(256) as u8),
            2 => (0..1 + random(2000)).for_each(|_| bad[64 + random(good.len() - 64)] = random(256) as u8),
            _ => bad.truncate(random(good.len())),
        }
        std::fs::write(&victim, bad).unwrap();
        let module = ModuleFile { path: victim.clone(), build_id: None };
        let mut symbolizer = Symbolizer::new(local(&files.folder));
        let frames = symbolizer.resolve(&module, &addresses, &mut |_| ());
        assert_eq!(frames.len(), addresses.len());
    }
}

#[test]
fn order_duplicates_and_progress() {
    let files = stripped("order");
    let mut addresses = addresses(&files.full, 9);
    addresses.reverse();
    addresses.extend_from_within(..20);
    let mut symbolizer = Symbolizer::new(local(&files.folder));
    let mut reports = Vec::new();
    let frames = symbolizer.resolve(&module(&files.full), &addresses, &mut |done| reports.push(done));
    assert_eq!(reports.last(), Some(&addresses.len()));
    assert!(reports.is_sorted());
    for (address, frames) in addresses.iter().zip(&frames) {
        assert_eq!(symbolizer.resolve(&module(&files.full), &[*address], &mut |_| ())[0], *frames);
    }
}
