package console

// texts are what the pages say, by a key that is most often the English text itself.
var texts = catalog{
	// Pages and words.
	"IAK callbacks":                          {id: "Callback IAK"},
	"Skip to the content":                    {id: "Langsung ke isi"},
	"Pages":                                  {id: "Halaman"},
	"Overview":                               {id: "Ringkasan"},
	"Recent callbacks":                       {id: "Callback terbaru"},
	"Orders":                                 {id: "Pesanan"},
	"Ask IAK":                                {id: "Tanya IAK"},
	"Send a test":                            {id: "Kirim uji coba"},
	"That did not work":                      {id: "Itu tidak berhasil"},
	"Orders by state":                        {id: "Pesanan menurut keadaan"},
	"Not all orders could be counted:":       {id: "Tidak semua pesanan bisa dihitung:"},
	"The oldest that waits for the app came": {id: "Yang paling lama menunggu aplikasi datang"},
	"Deliver dead callbacks again":           {id: "Antar lagi callback yang berhenti"},
	"Stores and IAK":                         {id: "Penyimpanan dan IAK"},
	"answers":                                {id: "menjawab"},
	"does not answer":                        {id: "tidak menjawab"},
	"not asked yet":                          {id: "belum ditanya"},
	"does not confirm":                       {id: "tidak mengonfirmasi"},
	"Callbacks a minute, the last hour":      {id: "Callback per menit, satu jam terakhir"},
	"in the last hour":                       {id: "dalam satu jam terakhir"},
	"at most in a minute":                    {id: "paling banyak dalam satu menit"},
	"Of the last 1,000 callbacks of this Caddy.":               {id: "Dari 1.000 callback terakhir di Caddy ini."},
	"None in the last hour. To see one, send a test callback.": {id: "Tidak ada dalam satu jam terakhir. Untuk melihatnya, kirim callback uji coba."},
	"time":     {id: "waktu"},
	"outcome":  {id: "hasil"},
	"account":  {id: "akun"},
	"status":   {id: "status"},
	"attempt":  {id: "percobaan"},
	"app":      {id: "aplikasi"},
	"took":     {id: "lama"},
	"from":     {id: "dari"},
	"Show":     {id: "Tampilkan"},
	"Show all": {id: "Tampilkan semua"},
	"of the last 1,000 callbacks of this Caddy; the log has all.":                {id: "dari 1.000 callback terakhir di Caddy ini; log memuat semuanya."},
	"No such callback since Caddy was started. What is older is in Caddy's log.": {id: "Tidak ada callback seperti itu sejak Caddy dijalankan. Yang lebih lama ada di log Caddy."},
	"state":               {id: "keadaan"},
	"all":                 {id: "semua"},
	"a part of it":        {id: "sebagian saja"},
	"changed within":      {id: "berubah dalam"},
	"changed":             {id: "berubah"},
	"newer":               {id: "lebih baru"},
	"older":               {id: "lebih lama"},
	"page":                {id: "halaman"},
	"orders":              {id: "pesanan"},
	"Without goods:":      {id: "Tanpa sn, pin, dan kode:"},
	"Deliver these again": {id: "Antar lagi yang ini"},
	"No order is selected. With other conditions, or in another state, there may be some; an order that never came is found by asking IAK.": {
		id: "Tidak ada pesanan yang cocok. Coba syarat atau keadaan lain; pesanan yang callback-nya tidak pernah datang bisa ditanyakan ke IAK."},
	"until":            {id: "sampai"},
	"kept":             {id: "disimpan"},
	"since":            {id: "sejak"},
	"confirmed by IAK": {id: "dikonfirmasi oleh IAK"},
	"next delivery":    {id: "pengantaran berikutnya"},
	"no route of this Caddy leads to the app any more": {id: "tidak ada rute di Caddy ini yang menuju aplikasi lagi"},
	"not by itself": {id: "tidak dengan sendirinya"},
	"deliveries":    {id: "pengantaran"},
	"store":         {id: "penyimpanan"},
	"the file that is used while Redis does not answer":   {id: "file yang dipakai selama Redis tidak menjawab"},
	"How the last deliveries have ended":                  {id: "Akhir dari pengantaran terakhir"},
	"Reveal the callback, goods and all (this is logged)": {id: "Buka isi callback, termasuk sn dan pin (ini dicatat)"},
	"Nothing is remembered of this order: no callback of it came with a right signature, or IAK denied it, or it was forgotten, or has expired.": {
		id: "Tidak ada catatan tentang pesanan ini: callback dengan tanda tangan yang benar tidak pernah datang, atau IAK membantahnya, atau sudah dilupakan, atau sudah kedaluwarsa."},
	"The callback":                         {id: "Callback-nya"},
	"No, go back":                          {id: "Tidak, kembali"},
	"Deliver again":                        {id: "Antar lagi"},
	"are due: 50 a second, beginning now.": {id: "akan diantar: 50 per detik, mulai sekarang."},
	"are in doubt too, and left alone: look at each in the app.": {id: "juga diragukan, dan dibiarkan: periksa satu per satu di aplikasi."},
	"Count": {id: "Hitung"},
	"callbacks would be delivered again. The app gets them no faster than the spool lets them.": {id: "callback akan diantar lagi. Aplikasi menerimanya tidak lebih cepat dari yang diizinkan spool."},
	"Deliver them":                           {id: "Antar semuanya"},
	"There are none: nothing is to be done.": {id: "Tidak ada: tidak perlu berbuat apa-apa."},
	"IAK's check-status says what has become of an order. Nothing is ordered or paid by that.": {
		id: "check-status IAK mengatakan apa yang terjadi dengan sebuah pesanan. Tidak ada yang dipesan atau dibayar karenanya."},
	"show goods (this is logged)":               {id: "tampilkan sn dan pin (ini dicatat)"},
	"if it has ended, hand it in as a callback": {id: "jika sudah selesai, teruskan sebagai callback"},
	"Ask":        {id: "Tanya"},
	"asked":      {id: "ditanyakan ke"},
	"Handed in:": {id: "Diteruskan:"},
	"Sends a callback as IAK does, signed with IAK_USERNAME and IAK_API_KEY of the console's own environment. The app takes it for a real one.": {
		id: "Mengirim callback seperti IAK, ditandatangani dengan IAK_USERNAME dan IAK_API_KEY dari lingkungan konsol ini. Aplikasi menganggapnya asli."},
	"to":             {id: "ke"},
	"what":           {id: "isi"},
	"a new one":      {id: "yang baru"},
	"Send":           {id: "Kirim"},
	"no such action": {en: "There is no such action.", id: "Tidak ada tindakan seperti itu."},

	// Statuses, states and outcomes: the words of the log, with what they mean in Indonesian.
	"process": {id: "diproses"}, "success": {id: "sukses"}, "failed": {id: "gagal"},
	"in_flight": {en: "in flight", id: "sedang diantar"}, "in_doubt": {en: "in doubt", id: "diragukan"}, "held": {id: "ditahan"},
	"accepted": {id: "diterima"}, "assumed": {id: "dianggap diterima"}, "released": {id: "dilepas"}, "spooled": {id: "menunggu aplikasi"}, "dead": {id: "berhenti"}, "forgotten": {id: "dilupakan"},
	"forwarded": {id: "diteruskan"}, "duplicate": {id: "ulangan"}, "stale": {id: "kabar lama"}, "acknowledged": {id: "dijawab saja"}, "rejected": {id: "ditolak"},
	"app_failed": {en: "app failed", id: "aplikasi menolak"}, "app_unknown": {en: "app unknown", id: "aplikasi tidak menjawab"}, "conflict": {id: "bertentangan"},
	"unconfirmed": {id: "dibantah IAK"}, "not_confirmed": {en: "not confirmed", id: "belum dikonfirmasi"}, "store_unavailable": {en: "store unavailable", id: "penyimpanan mati"}, "unrouted": {id: "tanpa rute"},

	// What a state means, and what to do.
	"means in_flight": {en: "A delivery waits for the app's answer.", id: "Sedang diantar, menunggu jawaban aplikasi."},
	"means in_doubt":  {en: "The app did not answer in time, or Caddy died: nobody knows whether it has acted.", id: "Aplikasi tidak menjawab pada waktunya, atau Caddy mati: tidak ada yang tahu apakah aplikasi sudah bertindak."},
	"means held":      {en: "Nobody knows whether the app has acted, so it is kept from it until you say.", id: "Tidak ada yang tahu apakah aplikasi sudah bertindak, jadi ditahan sampai Anda memutuskan."},
	"means accepted":  {en: "The app has accepted it. The same again does not reach it.", id: "Aplikasi sudah menerimanya. Ulangan tidak sampai ke aplikasi."},
	"means assumed":   {en: "The app did not answer, and on_doubt accept takes that for a yes.", id: "Aplikasi tidak menjawab, dan on_doubt accept menganggapnya sebagai ya."},
	"means released":  {en: "The app has accepted none yet. The next callback is delivered.", id: "Aplikasi belum menerima apa pun. Callback berikutnya akan diantar."},
	"means spooled":   {en: "It is kept until the app accepts it, and delivered again by itself.", id: "Disimpan sampai aplikasi menerimanya, dan diantar lagi dengan sendirinya."},
	"means dead":      {en: "It was tried for too long, and is not delivered any more by itself.", id: "Sudah terlalu lama dicoba, dan tidak diantar lagi dengan sendirinya."},
	"means forgotten": {en: "There is no record any more.", id: "Catatannya sudah tidak ada."},
	"do in_flight":    {en: "Wait: it ends by itself.", id: "Tunggu: akan selesai sendiri."},
	"do in_doubt":     {en: "Nothing, if the app knows repeats. Else look at the order in the app, and accept (it has acted) or release (it has not).", id: "Tidak perlu apa-apa jika aplikasi mengenali ulangan. Jika tidak, lihat pesanan di aplikasi, lalu terima (sudah bertindak) atau lepas (belum)."},
	"do held":         {en: "Look at the order in the app. Has it acted? Then accept. If not, release: it is delivered.", id: "Lihat pesanan di aplikasi. Sudah bertindak? Terima. Belum? Lepas: callback akan diantar."},
	"do accepted":     {en: "Nothing.", id: "Tidak perlu apa-apa."},
	"do assumed":      {en: "Look now and then whether the app has acted.", id: "Periksa sesekali apakah aplikasi sudah bertindak."},
	"do released":     {en: "Nothing. If no callback comes, ask IAK.", id: "Tidak perlu apa-apa. Jika callback tidak datang, tanya IAK."},
	"do spooled":      {en: "See below how the deliveries have ended, and mend the app. The rest happens by itself.", id: "Lihat di bawah bagaimana pengantaran berakhir, lalu perbaiki aplikasi. Selebihnya berjalan sendiri."},
	"do dead":         {en: "See below why, mend it, and deliver it again; or forget it, if the app will never want it.", id: "Lihat sebabnya di bawah, perbaiki, lalu antar lagi; atau lupakan jika aplikasi tidak akan pernah membutuhkannya."},
	"do forgotten":    {en: "Nothing.", id: "Tidak perlu apa-apa."},

	// Actions: their names, what they will do, and that it is done.
	"action accept":    {en: "Accept", id: "Terima"},
	"action release":   {en: "Release", id: "Lepas"},
	"action redeliver": {en: "Deliver now", id: "Antar sekarang"},
	"action forget":    {en: "Forget", id: "Lupakan"},
	"will accept":      {en: "You say that the app HAS acted on this order. The same callback does not reach it any more. Look in the app first.", id: "Anda menyatakan aplikasi SUDAH bertindak atas pesanan ini. Callback yang sama tidak akan sampai lagi. Periksa dulu di aplikasi."},
	"will release":     {en: "You say that the app has NOT acted on this order. What is kept is delivered at once, else the next callback is. Look in the app first: if it has acted, it acts twice.", id: "Anda menyatakan aplikasi BELUM bertindak atas pesanan ini. Callback yang disimpan langsung diantar, atau yang berikutnya. Periksa dulu di aplikasi: jika sudah bertindak, ia bertindak dua kali."},
	"will redeliver":   {en: "The app gets the callback now, in the place of the delivery that was to come next. If it is held, look in the app first: the app may have acted on it.", id: "Aplikasi menerima callback sekarang, menggantikan pengantaran berikutnya. Jika ditahan, periksa dulu di aplikasi: mungkin sudah bertindak."},
	"will forget":      {en: "The record is removed. If the app has accepted it, a repeat reaches the app again. If a callback is kept, it is lost unless IAK sends it again.", id: "Catatan dihapus. Jika aplikasi sudah menerimanya, ulangan akan sampai lagi ke aplikasi. Jika ada callback yang disimpan, callback itu hilang kecuali IAK mengirim lagi."},
	"done accept":      {en: "Accepted.", id: "Diterima."},
	"done release":     {en: "Released.", id: "Dilepas."},
	"done redeliver":   {en: "It is delivered now.", id: "Sedang diantar."},
	"done forget":      {en: "Forgotten.", id: "Dilupakan."},

	// How a try has ended.
	"try refused":       {en: "the app, or a handler in its place, has not accepted it", id: "aplikasi, atau handler di depannya, tidak menerimanya"},
	"try unsent":        {en: "nothing reached the app", id: "tidak ada yang sampai ke aplikasi"},
	"try unknown":       {en: "no whole answer came in time, or Caddy died: the app may have acted", id: "tidak ada jawaban utuh pada waktunya, atau Caddy mati: aplikasi mungkin sudah bertindak"},
	"try not_confirmed": {en: "IAK had not confirmed it yet: nothing was sent", id: "IAK belum mengonfirmasi: tidak ada yang dikirim"},

	// What IAK says.
	"standing final":   {en: "IAK says", id: "IAK mengatakan"},
	"standing open":    {en: "IAK says that it is still under way", id: "IAK mengatakan masih diproses"},
	"standing unknown": {en: "IAK does not know the order", id: "IAK tidak mengenal pesanan ini"},
	"standing refused": {en: "IAK refuses the request, and says nothing of the order", id: "IAK menolak permintaan, dan tidak mengatakan apa pun tentang pesanan"},
	"standing silent":  {en: "IAK gives no answer that counts", id: "IAK tidak memberi jawaban yang bisa dipakai"},
}

// text is one text in both languages. Without en the key is the English text.
type text struct{ en, id string }

type catalog map[string]text

// has tells whether there are texts in a language.
func (c catalog) has(lang string) bool { return lang == "en" || lang == "id" }

// get is the text of a key, the key itself if there is none: what Caddy says comes as it
// is.
func (c catalog) get(lang, key string) string {
	t := c[key]
	switch {
	case lang == "id" && t.id != "":
		return t.id
	case t.en != "":
		return t.en
	default:
		return key
	}
}
