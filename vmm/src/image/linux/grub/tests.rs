use super::*;

const DEBIAN: &str = include_str!("../specimens/debian-grub.cfg");
const UUID: &str = "6a1b0c2d-3e4f-4a5b-8c6d-7e8f9a0b1c2d";

/// Two devices: `root`, which is found by UUID, and `other`.
#[derive(Debug, Default)]
struct Disk(Vec<(&'static str, String)>);

impl Devices for Disk {
    fn read(&self, device: &str, path: &str) -> Option<Vec<u8>> {
        let found = self.0.iter().find(|(name, _)| *name == path && device == "root");
        found.map(|(_, text)| text.as_bytes().to_vec())
    }

    fn has(&self, device: &str, path: &str) -> bool {
        self.read(device, path).is_some()
    }

    fn search(&self, by: SearchBy<'_>) -> Option<String> {
        [SearchBy::Uuid(UUID), SearchBy::Label("r"), SearchBy::File("/x")]
            .contains(&by)
            .then(|| "root".to_owned())
    }
}

fn loaded(disk: &Disk, text: &str) -> (String, Loaded) {
    let mut run = Run::new(disk, "other", "/boot/grub", text).unwrap();
    let (entry, named) = run.default_entry().unwrap();
    assert!(named, "{:?}", run.variables["default"]);
    let entry = entry.clone();
    let loaded = run.load(&entry).unwrap();
    (entry.title, loaded)
}

fn file(path: &str) -> (String, String) {
    ("root".to_owned(), path.to_owned())
}

/// What grub-mkconfig of Debian 12 (GRUB 2.06-13+deb12u2) wrote, with `GRUB_DEFAULT=saved` and paths made Debian's own.
#[test]
fn the_first_entry_of_a_debian_is_found() {
    let (title, loaded) = loaded(&Disk::default(), DEBIAN);
    assert_eq!(title, "Debian GNU/Linux");
    assert_eq!(loaded.linux, Some(file("/boot/vmlinuz-6.1.0-50-cloud-amd64")));
    assert_eq!(loaded.cmdline, format!("root=UUID={UUID} ro quiet"));
    assert_eq!(loaded.initrds, [file("/boot/initrd.img-6.1.0-50-cloud-amd64")]);
}

#[test]
fn a_saved_default_reaches_into_submenus() {
    for saved in [
        format!("gnulinux-advanced-{UUID}>gnulinux-6.1.0-48-cloud-amd64-advanced-{UUID}"),
        "1>2".to_owned(),
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-48-cloud-amd64".to_owned(),
    ] {
        let block = format!("# GRUB Environment Block\nsaved_entry={saved}\n{}", "#".repeat(900));
        let mut disk = Disk(vec![("/boot/grub/grubenv", block)]);
        // The environment is read from where the configuration is.
        let mut run = Run::new(&disk, "root", "/boot/grub", DEBIAN).unwrap();
        let entry = run.default_entry().unwrap().0.clone();
        assert_eq!(entry.title, "Debian GNU/Linux, with Linux 6.1.0-48-cloud-amd64", "{saved}");
        let loaded = run.load(&entry).unwrap();
        assert_eq!(loaded.linux, Some(file("/boot/vmlinuz-6.1.0-48-cloud-amd64")));
        disk.0.clear();
    }
}

#[test]
fn a_default_that_is_not_there_is_the_first_entry() {
    let text = "set default=7\nmenuentry a { linux /a }\nmenuentry b { linux /b }";
    let disk = Disk::default();
    let run = Run::new(&disk, "root", "/grub", text).unwrap();
    let (entry, named) = run.default_entry().unwrap();
    assert_eq!((entry.title.as_str(), named), ("a", false));
}

#[test]
fn an_esp_leads_to_the_real_configuration() {
    let stub = format!(
        "search.fs_uuid {UUID} root hd0,gpt2 \nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
    );
    let disk = Disk(vec![("/boot/grub/grub.cfg", DEBIAN.to_owned())]);
    assert_eq!(loaded(&disk, &stub).0, "Debian GNU/Linux");
}

#[test]
fn conditions_quotes_and_variables_are_those_of_grub() {
    let text = r#"
        set a="x y"; b="$a"
        function f { set "got=$1|$2|$#"; }
        f $a "$a"
        if [ "$b" = "x y" -a ! -f /none ] ; then set c=1; else set c=2; fi
        if [ x$nothing = xy -o -z "" ] && [ ! -n "" ]; then d=yes; fi
        if false; then e=1; elif [ 10 -gt 9 ]; then e=2; fi
        false || set g=or
        true || set g=wrong
        if loadfont x; then h=1; else h=0; fi
        search --label --set=found r
        set default=two
        menuentry one --id=1 { linux /one }
        menuentry 'number two' --class x --id two { linux (root)/two "quo ted" $a $nothing; initrd /i1 (root)/i2 }
    "#;
    let disk = Disk::default();
    let mut run = Run::new(&disk, "other", "/grub", text).unwrap();
    let is = |name: &str, value: &str| assert_eq!(run.variables[name], value, "{name}");
    is("got", "x|y|3");
    [("c", "1"), ("d", "yes"), ("e", "2"), ("g", "or"), ("h", "0"), ("found", "root")]
        .iter()
        .for_each(|(n, v)| is(n, v));
    let entry = run.default_entry().unwrap().0.clone();
    let loaded = run.load(&entry).unwrap();
    assert_eq!(loaded.cmdline, "quo ted x y");
    assert_eq!(loaded.linux, Some(file("/two")));
    assert_eq!(loaded.initrds, [("other".to_owned(), "/i1".to_owned()), file("/i2")]);
}

#[test]
fn what_never_ends_or_grows_is_given_up() {
    let disk = Disk(vec![("/loop", "source /loop".to_owned())]);
    let told = |text: &str| Run::new(&disk, "root", "/grub", text).unwrap_err().to_string();
    assert_eq!(told("function f { f; }\nf"), "functions, files or menus are nested deeper than 8");
    assert_eq!(told("source /loop"), "functions, files or menus are nested deeper than 8");
    assert_eq!(
        told(&format!("a=xx\n{}", "a=$a$a\n".repeat(40))),
        "it has more characters in a value than 16384"
    );
    let doubling: String =
        (1..8).map(|n| format!("function f{n} {{ {} }}\n", format!("f{};", n - 1).repeat(20))).collect();
    assert_eq!(
        told(&format!("function f0 {{ true; }}\n{doubling}f6")),
        "it runs more than the 100000 commands that are looked at"
    );
    assert_eq!(told(&"menuentry a { true; }\n".repeat(600)), "it has more menu entries than 512");
}
