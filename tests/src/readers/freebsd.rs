//! What a debugger takes from a FreeBSD kernel's core: threads and their registers, by the kernel's own constants, as
//! kgdb and LLDB's FreeBSD-Kernel plugin do it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::minidump::{u32_at, u64_at};

/// A kernel's memory by virtual address.
pub trait VirtualMemory {
    /// Physical memory; all of it in one page, where a core keeps pages apart.
    fn read_pa(&self, address: u64, len: usize) -> Result<Vec<u8>>;

    /// Physical address of a kernel's virtual one.
    fn translate(&self, va: u64) -> Result<u64>;

    /// Bytes from a virtual address on.
    fn read_va(&self, va: u64, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = va + out.len() as u64;
            let piece = (len - out.len()).min(4096 - (at % 4096) as usize);
            out.extend(self.read_pa(self.translate(at)?, piece)?);
        }
        Ok(out)
    }

    /// A u32.
    fn u32_va(&self, va: u64) -> Result<u32> {
        Ok(u32_at(&self.read_va(va, 4)?, 0))
    }

    /// A u64.
    fn u64_va(&self, va: u64) -> Result<u64> {
        Ok(u64_at(&self.read_va(va, 8)?, 0))
    }

    /// A NUL-terminated string of less than `len` bytes.
    fn string_va(&self, va: u64, len: usize) -> Result<String> {
        let bytes = self.read_va(va, len)?;
        let end = bytes.iter().position(|&byte| byte == 0).context("a string without end")?;
        Ok(String::from_utf8(bytes[..end].to_vec())?)
    }
}

/// Address and size of symbols by name.
#[derive(Debug, Clone, Default)]
pub struct Symbols(pub BTreeMap<String, (u64, u64)>);

impl Symbols {
    /// From lines of address, size, section and name; `#` begins a comment.
    pub fn from_list(text: &str) -> Result<Self> {
        let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16);
        let mut symbols = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [address, size, _, name] = words[..] else { anyhow::bail!("line '{line}'") };
            symbols.insert(name.to_owned(), (number(address)?, number(size)?));
        }
        Ok(Self(symbols))
    }

    /// Address of a symbol.
    pub fn address(&self, name: &str) -> Result<u64> {
        self.0.get(name).map(|(address, _)| *address).with_context(|| format!("no symbol {name}"))
    }

    /// Size of a symbol.
    pub fn size(&self, name: &str) -> Result<u64> {
        self.0.get(name).map(|(_, size)| *size).with_context(|| format!("no symbol {name}"))
    }
}

/// A thread as a debugger lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct Thread {
    pub pid: u32,
    pub tid: u32,
    pub comm: String,
    pub name: String,
    /// -1 when it is on none.
    pub oncpu: i32,
    /// Address of the pcb that a debugger takes.
    pub pcb: u64,
    /// Whether that is `dumppcb`.
    pub crashed: bool,
}

/// All threads, in the order of the kernel's lists.
pub fn threads(core: &dyn VirtualMemory, symbols: &Symbols) -> Result<Vec<Thread>> {
    let int = |name: &str| core.u32_va(symbols.address(name)?).map(u64::from);
    let (p_list, p_pid, p_comm, p_threads) = (
        int("proc_off_p_list")?,
        int("proc_off_p_pid")?,
        int("proc_off_p_comm")?,
        int("proc_off_p_threads")?,
    );
    let (td_tid, td_name, td_oncpu, td_pcb, td_plist) = (
        int("thread_off_td_tid")?,
        int("thread_off_td_name")?,
        int("thread_off_td_oncpu")?,
        int("thread_off_td_pcb")?,
        int("thread_off_td_plist")?,
    );
    let (dumptid, pcb_size) = (int("dumptid")?, int("pcb_size")?);
    let mut stoppcbs = symbols.address("stoppcbs")?;
    if symbols.size("stoppcbs")? == 8 {
        stoppcbs = core.u64_va(stoppcbs)?;
    }
    let mut threads = Vec::new();
    let mut process = core.u64_va(symbols.address("allproc")?)?;
    while process != 0 {
        let pid = core.u32_va(process + p_pid)?;
        let comm = core.string_va(process + p_comm, 20)?;
        let mut thread = core.u64_va(process + p_threads)?;
        while thread != 0 {
            ensure!(threads.len() < 10_000, "a list without end");
            let tid = core.u32_va(thread + td_tid)?;
            let oncpu = core.u32_va(thread + td_oncpu)?.cast_signed();
            let crashed = u64::from(tid) == dumptid;
            let pcb = if crashed {
                symbols.address("dumppcb")?
            } else if let Ok(cpu) = u64::try_from(oncpu) {
                stoppcbs + cpu * pcb_size
            } else {
                core.u64_va(thread + td_pcb)?
            };
            let name = core.string_va(thread + td_name, 20)?;
            threads.push(Thread { pid, tid, comm: comm.clone(), name, oncpu, pcb, crashed });
            thread = core.u64_va(thread + td_plist)?;
        }
        process = core.u64_va(process + p_list)?;
    }
    Ok(threads)
}

/// The registers of the pcb at an address that a debugger takes, by name.
pub fn registers(core: &dyn VirtualMemory, pcb: u64) -> Result<BTreeMap<&'static str, u64>> {
    let bytes = core.read_va(pcb, 64)?;
    let names = ["r15", "r14", "r13", "r12", "rbp", "rsp", "rbx", "rip"];
    Ok(names.iter().enumerate().map(|(index, name)| (*name, u64_at(&bytes, 8 * index))).collect())
}
