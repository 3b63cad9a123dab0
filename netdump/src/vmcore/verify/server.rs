//! What the receiver that stored a core says of it: by the core's name, in its info file, in its manifest.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::super::core_file::CoreFile;
use super::super::info::{self, InfoFile};
use super::super::inspect::bytes_text;
use super::{Finding, Form, Verdict, ranges_text, sentence};
use crate::manifest::{self, GapList, Manifest, StoredKey};

/// Last parts of a file's name that say that the core is not whole.
const TELLING_ENDINGS: [&str; 2] = [".incomplete", ".partial"];
/// Longest key that is hashed.
const MAX_KEY: u64 = 1 << 20;

pub(super) fn check_name(verdict: &mut Verdict, path: &Path) {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(ending) = TELLING_ENDINGS.iter().find(|ending| name.ends_with(**ending)) {
        verdict.add(
            "name",
            Finding::Fail,
            format!("the name ends with {ending}: the server did not get all of it"),
        );
    }
}

pub(super) fn check_info(verdict: &mut Verdict, path: &Path, length: Option<u64>, form: Form) {
    const NAME: &str = "info";
    let Some(info_path) = info::beside(path) else {
        verdict.add(NAME, Finding::NotApplicable, "no info file of a server beside the core");
        return;
    };
    let info = match InfoFile::read(&info_path) {
        Ok(info) => info,
        Err(error) => {
            verdict.add(NAME, Finding::Fail, format!("{} cannot be read: {error}", info_path.display()));
            return;
        }
    };
    verdict.judge(NAME, judge_info(&info, length, form));
}

fn judge_info(info: &InfoFile, length: Option<u64>, form: Form) -> Result<String, String> {
    let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "nothing".to_owned());
    if !info.is_complete() {
        let missing =
            info.missing.as_ref().map(|missing| format!("; missing: {missing}")).unwrap_or_default();
        return Err(format!("the server says of the end of the dump: {}{missing}", said(&info.ending)));
    }
    if info.parity.as_deref() != Some("Pass") {
        return Err(format!("the server says of the header's parity: {}", said(&info.parity)));
    }
    if form == Form::Plain && info.is_compressed() {
        return match (info.dump_extent, length) {
            (Some(extent), Some(length)) if extent != length => {
                Err(format!("the header announced {extent} bytes unpacked, the file has {length}"))
            }
            _ => Ok("the server has the whole dump, compressed; the header's parity is right".to_owned()),
        };
    }
    match (info.dump_length, length) {
        (Some(dump_length), Some(length)) if dump_length != length => {
            Err(format!("the header announced {dump_length} bytes, the file has {length}"))
        }
        (None, _) => Err("the server does not say how long the dump is".to_owned()),
        _ => Ok("the server has the whole dump, the header's parity and length are right".to_owned()),
    }
}

/// Reads the manifest that is named, else that beside the core, and says whether it makes sense.
pub(super) fn check_manifest(
    verdict: &mut Verdict,
    core: &Path,
    named: Option<&Path>,
    length: Option<u64>,
    form: Form,
) -> Option<Manifest> {
    const NAME: &str = "manifest";
    let Some(path) = named.map(PathBuf::from).or_else(|| manifest::beside(core)) else {
        verdict.add(NAME, Finding::NotApplicable, "no manifest of a receiver beside the core");
        return None;
    };
    let manifest = match manifest::read(&path) {
        Ok(manifest) => manifest,
        Err(error) => {
            verdict.add(NAME, Finding::Fail, format!("{}: {}", path.display(), sentence(&error)));
            return None;
        }
    };
    let what = format!("of {}, {}, {}", manifest.core, bytes_text(manifest.length), manifest.ended);
    if form.was_changed(manifest.is_compressed(), manifest.is_encrypted()) {
        let text = format!("{what}: the core as it was stored, which this file is no more");
        verdict.add(NAME, Finding::NotApplicable, text);
        return None;
    }
    verdict.judge(NAME, judge_manifest(&manifest, core, length).map(|()| what));
    if let Some(key) = &manifest.key {
        verdict.judge("key", judge_key(key, &path));
    }
    Some(manifest)
}

fn judge_manifest(manifest: &Manifest, core: &Path, length: Option<u64>) -> Result<(), String> {
    if !manifest.complete {
        let GapList { count, listed, .. } = &manifest.gaps;
        let missing: Vec<_> = listed.iter().map(|&(start, end)| start..end).collect();
        let missing = ranges_text("; missing: ", &missing, usize::try_from(*count).unwrap_or(usize::MAX));
        return Err(format!("the receiver says of the end of the dump: {}{missing}", manifest.ending));
    }
    let info = info::beside(core).and_then(|path| InfoFile::read(&path).ok());
    let said = info.and_then(|info| info.ending);
    if let Some(said) = said.filter(|said| *said != manifest.ending) {
        return Err(format!("it says '{}' of the dump's end, the info file says '{said}'", manifest.ending));
    }
    if let Some(digest) = manifest.digest.as_ref().filter(|digest| digest.length != manifest.length) {
        return Err(format!("it says {} bytes, its digest {}", manifest.length, digest.length));
    }
    if !manifest.gaps.fit(manifest.length) {
        return Err("its gaps do not fit together, or into the core".to_owned());
    }
    match length {
        // Which bytes are missing or too many is said of the content.
        Some(length) if length != manifest.length => {
            Err(format!("the receiver stored {} bytes, the file has {length}", manifest.length))
        }
        _ => Ok(()),
    }
}

/// The key lies beside the manifest, under a plain name.
fn judge_key(key: &StoredKey, manifest: &Path) -> Result<String, String> {
    let name = Path::new(&key.file);
    if name.file_name() != Some(name.as_os_str()) {
        return Err(format!("the manifest says that its file is called '{}'", key.file));
    }
    let path = manifest.with_file_name(name);
    let mut bytes = Vec::new();
    CoreFile::open(&path)
        .and_then(|_| std::fs::File::open(&path)?.take(MAX_KEY + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    if bytes.len() as u64 != key.length {
        return Err(format!("{} has {} bytes, {} were stored", key.file, bytes.len(), key.length));
    }
    if *blake3::hash(&bytes).to_hex() != *key.blake3 {
        return Err(format!("{} is not as it was stored: its hash is another", key.file));
    }
    Ok(format!("{} is as it was stored", key.file))
}
