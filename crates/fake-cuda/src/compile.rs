//! Compiles the fake libraries: each source to an object that is kept until it or a header it includes changes.

use crate::Variant;
use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::SystemTime;

/// Compilers at work at a time.
const PARALLEL: usize = 2;

/// One shared library.
struct Library {
    file: &'static str,
    /// Its `SONAME`, by which a later load by that name finds the one in the process.
    soname: &'static str,
    sources: Vec<PathBuf>,
}

/// Builds what is out of date and returns the folder of the libraries. Other processes that want the same wait.
pub(crate) fn build(variant: Variant) -> PathBuf {
    if cfg!(not(target_os = "linux")) {
        panic!("the fake CUDA libraries need Linux");
    }
    let folder = target_folder().join("fake-cuda").join(variant.name());
    let objects = folder.join("objects");
    fs::create_dir_all(&objects).unwrap_or_else(|error| panic!("cannot make {}: {error}", objects.display()));
    let lock = File::create(folder.join("lock")).expect("the folder just made takes a file");
    lock.lock().expect("files of the target folder can be locked");
    let libraries = libraries();
    compile_all(variant, &libraries, &objects);
    for library in &libraries {
        link(variant, library, &objects, &folder);
    }
    same_file(&folder.join("libcuda.so.1"), &folder.join("libcuda.so"));
    folder
}

/// Cargo's target folder: `OUT_DIR` is `<target>/<profile>/build/<package>/out`.
fn target_folder() -> PathBuf {
    let out = Path::new(env!("OUT_DIR"));
    out.ancestors().nth(4).expect("OUT_DIR lies four folders below the target folder").to_path_buf()
}

fn cpp_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp")
}

/// The three libraries. All kernels are part of the driver.
fn libraries() -> [Library; 3] {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cpp = cpp_folder();
    let kernels = crate_folder.join("../cuda/kernels");
    let mut driver = sources(&cpp.join("driver"), "cc");
    driver.extend(sources(&kernels, "cu"));
    driver.extend(sources(&crate_folder.join("tests/kernels"), "cu"));
    [
        Library { file: "libcuda.so.1", soname: "libcuda.so", sources: driver },
        Library { file: "libnccl.so.2", soname: "libnccl.so.2", sources: sources(&cpp.join("nccl"), "cc") },
        Library { file: "libcublas.so.13", soname: "libcublas.so.13", sources: vec![cpp.join("cublas.cc")] },
    ]
}

/// The files of a folder with this extension, in order of their names.
fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder's entry can be read").path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn compiler() -> OsString {
    env::var_os("CXX").filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".into())
}

/// Where the compiler keeps one of its own files.
pub(crate) fn compilers_own_file(name: &str) -> String {
    let output = run(Command::new(compiler()).arg(format!("-print-file-name={name}")));
    let output = output.unwrap_or_else(|message| panic!("{message}"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn flags(variant: Variant) -> &'static [&'static str] {
    match variant {
        Variant::Plain => &["-O2"],
        Variant::Asan => {
            &["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        }
        Variant::Tsan => &["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=thread"],
    }
}

/// Misaligned accesses end the process in every variant; driver/alignment.cc takes the place of a sanitizer library.
const KERNEL_FLAGS: [&str; 4] = ["-fsanitize=alignment", "-fno-sanitize-recover=alignment", "-include", "cuda_shim.h"];

fn object_of(source: &Path, objects: &Path) -> PathBuf {
    // The last three parts tell all sources apart: cuda-kernels-relu.cu, tests-kernels-relu.cu.
    let mut parts: Vec<_> = source.iter().rev().take(3).map(|part| part.to_string_lossy()).collect();
    parts.reverse();
    objects.join(format!("{}.o", parts.join("-")))
}

fn compile_all(variant: Variant, libraries: &[Library], objects: &Path) {
    let commands = libraries.iter().flat_map(|library| &library.sources).map(|source| {
        let object = object_of(source, objects);
        (compile_command(variant, source, &object), object)
    });
    let outdated: VecDeque<_> = commands.filter(|(command, object)| !is_current(object, command)).collect();
    let queue = Mutex::new(outdated);
    let next = || queue.lock().expect("no compiler thread panics").pop_front();
    let work = || {
        while let Some((command, object)) = next() {
            compile(command, &object)?;
        }
        Ok(())
    };
    let results = std::thread::scope(|scope| {
        let threads = [(); PARALLEL].map(|()| scope.spawn(work));
        threads.map(|thread| thread.join().expect("no compiler thread panics"))
    });
    if let Some(message) = results.into_iter().find_map(Result::<(), String>::err) {
        panic!("{message}");
    }
}

fn compile_command(variant: Variant, source: &Path, object: &Path) -> Command {
    let mut command = Command::new(compiler());
    command.args([
        "-std=c++20",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
    ]);
    command.args(flags(variant)).arg("-I").arg(cpp_folder());
    if source.extension().is_some_and(|extension| extension == "cu") {
        command.args(KERNEL_FLAGS);
    }
    // What the object was made from is written beside it, for `is_current`.
    command.arg("-MD").arg("-MF").arg(object.with_extension("d"));
    command.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(unfinished(object));
    command
}

fn compile(mut command: Command, object: &Path) -> Result<(), String> {
    run(&mut command)?;
    // The object appears whole or not at all.
    fs::rename(unfinished(object), object)
        .and_then(|()| fs::write(object.with_extension("command"), format!("{command:?}")))
        .map_err(|error| format!("cannot keep {}: {error}", object.display()))
}

/// Where a file is written before it gets its name.
fn unfinished(file: &Path) -> PathBuf {
    file.with_extension("unfinished")
}

/// Whether an object was made by this command and is newer than everything it was made from.
fn is_current(object: &Path, command: &Command) -> bool {
    let made_so = fs::read_to_string(object.with_extension("command")).is_ok_and(|kept| kept == format!("{command:?}"));
    let (Some(made), Ok(rule)) = (modified(object), fs::read_to_string(object.with_extension("d"))) else {
        return false;
    };
    let (_, files) = rule.split_once(": ").unwrap_or_default();
    let mut files = files.split_whitespace().filter(|word| *word != "\\");
    made_so && files.all(|file| modified(Path::new(file)).is_some_and(|changed| changed < made))
}

fn modified(file: &Path) -> Option<SystemTime> {
    fs::metadata(file).and_then(|data| data.modified()).ok()
}

/// Links a library unless it is newer than its objects, the same ones as the last time.
fn link(variant: Variant, library: &Library, objects: &Path, folder: &Path) {
    let inputs: Vec<PathBuf> = library.sources.iter().map(|source| object_of(source, objects)).collect();
    let target = folder.join(library.file);
    let list = inputs.iter().map(|input| format!("{}\n", input.display())).collect::<String>();
    let list_file = folder.join(format!("{}.objects", library.file));
    let made = modified(&target);
    let current = inputs.iter().all(|input| modified(input) < made);
    if current && fs::read_to_string(&list_file).is_ok_and(|kept| kept == list) {
        return;
    }
    let mut command = Command::new(compiler());
    let unfinished = unfinished(&target);
    command.args(["-shared", "-pthread", "-Wl,-Bsymbolic", "-Wl,-z,nodelete"]).args(flags(variant));
    command.arg(format!("-Wl,-soname,{}", library.soname)).args(&inputs).arg("-ldl").arg("-o").arg(&unfinished);
    run(&mut command).unwrap_or_else(|message| panic!("{message}"));
    fs::rename(&unfinished, &target).expect("the library the compiler wrote can be renamed");
    fs::write(&list_file, list).expect("the folder of the libraries takes a file");
}

/// Makes `second` another name of `first`: one file, which the loader loads once.
fn same_file(first: &Path, second: &Path) {
    let unfinished = unfinished(second);
    let _ = fs::remove_file(&unfinished);
    let linked = fs::hard_link(first, &unfinished).and_then(|()| fs::rename(&unfinished, second));
    linked.unwrap_or_else(|error| panic!("cannot name {} {}: {error}", first.display(), second.display()));
    // Renaming one name of a file over another does nothing.
    let _ = fs::remove_file(&unfinished);
}

/// Runs the compiler; what it said if it failed.
fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("cannot run the C++ compiler, {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("the C++ compiler failed\n{command:?}\n{}", String::from_utf8_lossy(&output.stderr)))
}
