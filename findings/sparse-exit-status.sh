#!/bin/sh
# sparse 0.6.4 (Debian 0.6.4-3): what its exit status says.
#
# Expected: as of a compiler, that an error makes it other than 0, and that -Werror makes a warning one.
# Seen:     0 after "error: undefined identifier", whatever the file; -Werror is taken and changes nothing. Only
#           -Wsparse-error has status 1, for an error and for a warning. So `make C=1` ends well on code that sparse could
#           not parse, and who judges by the status has to read the output. Besides, C that gcc -Wall -Werror takes is an
#           error to it: a static assertion whose strlen() the compiler folds is "bad constant expression".
#
# Needs gcc and a Debian whose mirror has that version. Exit status 0: as seen.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download sparse=0.6.4-3
dpkg-deb -x sparse_*.deb .
printf 'int broken(void);\nint broken(void)\n{\n\treturn undeclared;\n}\n' >broken.c
printf 'int empty(int *p);\nint empty(int *p)\n{\n\treturn p == 0;\n}\n' >doubtful.c
printf '_Static_assert(sizeof("abc") - 1 == __builtin_strlen("abc"), "length");\n' >sound.c
gcc -Wall -Werror -c sound.c -o sound.o
for file in broken.c doubtful.c sound.c; do
	for option in "" -Werror -Wsparse-error; do
		status=0
		# shellcheck disable=SC2086
		said=$(usr/bin/sparse $option "$file" 2>&1) || status=$?
		first=$(printf '%s\n' "$said" | head -n 1)
		printf '%s %s: status %d, %s\n' "$file" "${option:-alone}" "$status" "${first#*: }"
	done
done | tee seen
cat >expected <<'SEEN'
broken.c alone: status 0, error: undefined identifier 'undeclared'
broken.c -Werror: status 0, error: undefined identifier 'undeclared'
broken.c -Wsparse-error: status 1, error: undefined identifier 'undeclared'
doubtful.c alone: status 0, warning: Using plain integer as NULL pointer
doubtful.c -Werror: status 0, warning: Using plain integer as NULL pointer
doubtful.c -Wsparse-error: status 1, error: Using plain integer as NULL pointer
sound.c alone: status 0, error: bad constant expression
sound.c -Werror: status 0, error: bad constant expression
sound.c -Wsparse-error: status 1, error: bad constant expression
SEEN
diff expected seen
