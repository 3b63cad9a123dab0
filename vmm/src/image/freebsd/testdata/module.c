/*
 * What FreeBSD's DECLARE_MODULE, MODULE_VERSION and MODULE_DEPEND (sys/sys/module.h, sys/sys/linker_set.h) leave in a
 * module. Made into module.ko by: gcc -c -O1 -fno-pic -mcmodel=kernel -fno-asynchronous-unwind-tables -o module.ko module.c
 */
struct mod_metadata { int version, type; const void *data; const char *cval; };
struct mod_depend { int minimum, preferred, maximum; };
struct mod_version { int version; };
struct moduledata { const char *name; int (*evhand)(void); void *priv; };

#define SET(sym) static void const *const __set_##sym \
	__attribute__((section("set_modmetadata_set"), used)) = &sym

static int event(void) { return 0; }
static struct moduledata if_test_mod = { "if_test", event, 0 };
static struct mod_metadata md_if_test = { 1, 2, &if_test_mod, "if_test" };
SET(md_if_test);
static struct mod_depend kernel_depend = { 1400000, 1400097, 1499999 };
static struct mod_metadata md_kernel = { 1, 1, &kernel_depend, "kernel" };
SET(md_kernel);
static struct mod_version if_test_version = { 3 };
static struct mod_metadata md_version = { 1, 3, &if_test_version, "if_test" };
SET(md_version);
static struct mod_depend bus_depend = { 1, 1, 1 };
static struct mod_metadata md_bus = { 1, 1, &bus_depend, "bus_test" };
SET(md_bus);
