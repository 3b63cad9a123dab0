//! Builds every guest in `guests/` with the compiler that builds this crate, and writes the table that the library
//! includes. A guest's name is that of its file; what it is about is the first paragraph of its documentation.
//!
//! The guests are freestanding programs for this very target: no other target or toolchain is needed, only its linker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What makes a freestanding image of an ordinary program.
const CODE: &[&str] = &[
    "--edition=2024",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Coverflow-checks=off",
    "-Ccodegen-units=1",
    "-Crelocation-model=static",
    "-Cforce-unwind-tables=no",
];
const LINK: &[&str] = &[
    "-Cstrip=debuginfo",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,max-page-size=4096",
    "-Clink-arg=-Wl,-z,norelro",
    "-Clink-arg=-T",
];

/// The flavours of the guest that plays FreeBSD: the name that each gets, and what it is compiled with.
const FREEBSD_ABI: &str = "guests/freebsd-abi/main.rs";
const FLAVOURS: [(&str, &str); 3] =
    [("freebsd-abi", "14"), ("freebsd-abi-12", "12"), ("freebsd-abi-13", "13")];
/// Its addresses are in the last 2 GiB.
const HIGH_CODE: &str = "-Ccode-model=kernel";
/// Byte of an ELF file that names the operating system, and FreeBSD there (ELFOSABI_FREEBSD).
const EI_OSABI: usize = 7;
const FREEBSD: u8 = 9;

fn main() {
    for input in ["build.rs", "guest.ld", "freebsd-abi.ld", "guests", "src/contract.rs", "src/freebsd.rs"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = variable("TARGET");
    assert!(
        target.starts_with("x86_64-") && target.contains("-linux-"),
        "guests are built for x86_64 Linux targets only, not for {target}"
    );

    let runtime = out.join("librt.rlib");
    let mut command = compiler(&root, &target);
    run(command.args(["--crate-type=rlib", "--crate-name=rt"]), &root.join("guests/rt/lib.rs"), &runtime);

    let mut table = String::from("&[\n");
    for source in guests(&root.join("guests")) {
        let name = source.file_stem().and_then(|stem| stem.to_str()).expect("a guest's file name is text");
        let image = out.join(format!("{name}.elf"));
        let mut command = compiler(&root, &target);
        command.arg(format!("--crate-name={}", name.replace('-', "_")));
        command.arg(format!("--extern=rt={}", runtime.display()));
        command.args(LINK).arg(format!("-Clink-arg={}", root.join("guest.ld").display()));
        run(&mut command, &source, &image);
        table += &entry(name, &about(&source), &image);
    }
    table += "]\n";
    fs::write(out.join("guests.rs"), table).expect("the output folder takes a file");
    build_freebsd_abi(&root, &out, &target);
}

/// Builds every flavour of the guest that plays FreeBSD, with a table of its own: it shares sources with the runtime of
/// the others, but neither addresses nor symbols.
fn build_freebsd_abi(root: &Path, out: &Path, target: &str) {
    let source = root.join(FREEBSD_ABI);
    let mut table = String::from("&[\n");
    for (name, flavour) in FLAVOURS {
        let image = out.join(format!("{name}.elf"));
        let mut command = compiler(root, target);
        command.args(["--crate-name=freebsd_abi", HIGH_CODE, &format!("--cfg=flavour={flavour:?}")]);
        command.args(LINK).arg(format!("-Clink-arg={}", root.join("freebsd-abi.ld").display()));
        run(&mut command, &source, &image);
        let mut bytes = fs::read(&image).expect("the linker has written the image");
        bytes[EI_OSABI] = FREEBSD;
        fs::write(&image, bytes).expect("the output folder takes a file");
        table += &entry(name, &format!("{} As FreeBSD {flavour}.", about(&source)), &image);
    }
    table += "]\n";
    fs::write(out.join("freebsd_abi.rs"), table).expect("the output folder takes a file");
}

/// A line of a table.
fn entry(name: &str, about: &str, image: &Path) -> String {
    format!("    Guest {{ name: {name:?}, about: {about:?}, elf: include_bytes!({image:?}) }},\n")
}

/// The sources, in order of name.
fn guests(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of guests is there");
    let paths = entries.map(|entry| entry.expect("the folder of guests is readable").path());
    let mut sources: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect();
    sources.sort();
    sources
}

/// First paragraph of a file's documentation, on one line.
fn about(source: &Path) -> String {
    let text = fs::read_to_string(source).expect("a guest's source is readable");
    let lines = text.lines().map_while(|line| line.strip_prefix("//! "));
    lines.collect::<Vec<_>>().join(" ")
}

/// The compiler with what every part of a guest needs.
fn compiler(root: &Path, target: &str) -> Command {
    let mut command = Command::new(variable("RUSTC"));
    command.args(CODE).arg(format!("--target={target}"));
    // A guest that reports its own bug names the place in the source, not that on the machine that built it.
    command.arg(format!("--remap-path-prefix={}=guest-images", root.display()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.arg(format!("-Clinker={linker}"));
    }
    command
}

/// Compiles a source; what the compiler warns of becomes cargo's warnings.
fn run(command: &mut Command, source: &Path, output: &Path) {
    command.arg(source).arg("-o").arg(output);
    let result = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let messages = String::from_utf8_lossy(&result.stderr);
    assert!(result.status.success(), "{command:?} failed:\n{messages}");
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name} is set by cargo: {error}"))
}
