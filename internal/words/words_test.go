package words

import "testing"

// Every text is there in Indonesian.
func TestTexts(t *testing.T) {
	for _, c := range []catalog{pages, commands} {
		for key, text := range c {
			if text.id == "" {
				t.Errorf("%q has no Indonesian", key)
			}
		}
	}
	for key := range commands {
		if _, twice := pages[key]; twice {
			t.Errorf("%q stands twice", key)
		}
	}
}

func TestFromBrowser(t *testing.T) {
	for header, want := range map[string]Language{
		"": English, "id": Indonesian, "id-ID,id;q=0.9,en;q=0.8": Indonesian, "en-US,en;q=0.9,id;q=0.8": English, "fr, id": Indonesian, "in": Indonesian, "fr": English, "*": English,
	} {
		if got := FromBrowser(header); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

// The first variable that is set counts, whatever it says.
func TestFromEnvironment(t *testing.T) {
	for _, c := range []struct {
		all, messages, lang string
		want                Language
	}{
		{"", "", "", English},
		{"", "", "id_ID.UTF-8", Indonesian},
		{"", "id_ID", "en_US.UTF-8", Indonesian},
		{"C", "id_ID", "id_ID", English},
		{"", "", "C.UTF-8", English},
	} {
		t.Setenv("LC_ALL", c.all)
		t.Setenv("LC_MESSAGES", c.messages)
		t.Setenv("LANG", c.lang)
		if got := FromEnvironment(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
