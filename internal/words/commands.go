package words

// commands are what the commands say of an answer, a check or a record, by the English
// text.
var commands = catalog{
	// send: what an answer means.
	"The app has accepted it": {id: "Aplikasi sudah menerimanya"},
	"Answered from the record: the app did not see it, since it has accepted the same before": {
		id: "Dijawab dari catatan: tidak sampai ke aplikasi, karena aplikasi sudah menerima callback yang sama sebelumnya"},
	"Answered from the record: the app did not see it, since it has accepted newer news before": {
		id: "Dijawab dari catatan: tidak sampai ke aplikasi, karena aplikasi sudah menerima kabar yang lebih baru"},
	"Answered by on_process acknowledge: the app did not see it": {
		id: "Dijawab oleh on_process acknowledge: tidak sampai ke aplikasi"},
	"It is kept, and delivered to the app by itself until that accepts it; caddy iak-callback show tells how that goes": {
		id: "Disimpan, dan diantar ke aplikasi secara otomatis sampai diterima; lihat hasilnya dengan caddy iak-callback show"},
	"Not taken: the same order is being delivered right now; send it again in some seconds": {
		id: "Tidak diambil: pesanan yang sama sedang diantar saat ini; kirim lagi beberapa detik kemudian"},
	"Held: nobody knows whether the app has acted on this order, and an operator has to say": {
		id: "Ditahan: tidak ada yang tahu apakah aplikasi sudah bertindak atas pesanan ini, dan operator harus memutuskan"},
	"Refused: it contradicts what the app has accepted of this order": {
		id: "Ditolak: bertentangan dengan yang sudah diterima aplikasi untuk pesanan ini"},
	"Refused by confirm: IAK says another thing of this order": {
		id: "Ditolak oleh confirm: IAK mengatakan hal lain tentang pesanan ini"},
	"Not taken: IAK has not confirmed it yet": {id: "Tidak diambil: IAK belum mengonfirmasinya"},
	"The app has not accepted it":             {id: "Aplikasi tidak menerimanya"},
	"The app gave no whole answer in time: it may have acted": {
		id: "Aplikasi tidak memberi jawaban utuh pada waktunya: mungkin sudah bertindak"},
	"The app did not answer, and on_doubt accept takes that for a yes": {
		id: "Aplikasi tidak menjawab, dan on_doubt accept menganggapnya sebagai ya"},
	"Not taken: the store does not answer": {id: "Tidak diambil: penyimpanan tidak menjawab"},
	"Refused: no account signs so; check username, api key, and production against development": {
		id: "Ditolak: tidak ada akun dengan tanda tangan ini; periksa username, api key, dan apakah produksi atau development"},
	"No such page, or the app does not know the order": {id: "Halaman itu tidak ada, atau aplikasi tidak mengenal pesanannya"},
	"Refused: something on the way has made another method of the POST": {
		id: "Ditolak: sesuatu di jalan mengubah POST menjadi metode lain"},
	"Not taken: the order is being delivered, is held, or says otherwise by now; caddy iak-callback show tells": {
		id: "Tidak diambil: pesanan sedang diantar, ditahan, atau kini hasilnya lain; lihat caddy iak-callback show"},
	"Refused: a field is missing or wrong; Caddy's log names it": {
		id: "Ditolak: ada field yang kurang atau salah; log Caddy menyebutnya"},
	"Not taken: the store, IAK or the app does not answer; caddy iak-callback check tells which": {
		id: "Tidak diambil: penyimpanan, IAK, atau aplikasi tidak menjawab; caddy iak-callback check mengatakan yang mana"},
	"The app could not be reached, or its answer does not count": {
		id: "Aplikasi tidak bisa dicapai, atau jawabannya tidak berarti diterima"},
	"The app did not answer in time: it may have acted": {
		id: "Aplikasi tidak menjawab pada waktunya: mungkin sudah bertindak"},
	"The answer is not whole: the app may have got the callback": {
		id: "Jawabannya tidak utuh: callback mungkin sampai ke aplikasi"},
	"Right: the forgery was refused, and the app did not see it": {id: "Benar: callback palsu ditolak, dan tidak sampai ke aplikasi"},
	"Something has answered, but the Caddy at --address has not seen the callback: either the path does not pass iak_callback, or it is another Caddy; caddy iak-callback check tells": {
		id: "Ada yang menjawab, tetapi Caddy di --address tidak melihat callback ini: path ini tidak melewati iak_callback, atau Caddy-nya lain; periksa dengan caddy iak-callback check"},
	"The app took a forgery: this path does not pass iak_callback": {
		id: "Aplikasi menerima callback palsu: path ini tidak melewati iak_callback"},
	"Refused by iak_callback, reason %s: %s": {id: "Ditolak oleh iak_callback, reason %s: %s"},
	"The app has accepted it, or with a spool it is kept for the app: caddy iak-callback show tells which, with --address if the admin API is not at localhost:2019": {
		id: "Aplikasi sudah menerimanya, atau dengan spool disimpan untuk aplikasi: lihat dengan caddy iak-callback show, dengan --address jika admin API tidak di localhost:2019"},
	"A redirect, which IAK may not follow: give IAK the url that it leads to": {
		id: "Redirect, yang mungkin tidak diikuti IAK: beri IAK url tujuannya"},
	"Not accepted: see Caddy's log, and the app's": {id: "Tidak diterima: lihat log Caddy dan log aplikasi"},

	// check: what to do.
	"IAK's POST would become a GET, or get lost: give IAK, and callback_url, the url that it leads to": {
		id: "POST dari IAK akan menjadi GET, atau hilang: beri IAK, dan callback_url, url tujuannya"},
	"this path does not pass iak_callback: give its matcher a * at the end, and see \"Let nothing get around it\" in docs/configuration.md": {
		id: "path ini tidak melewati iak_callback: beri matcher-nya * di akhir, dan lihat \"Let nothing get around it\" di docs/configuration.md"},
	"the path does not pass iak_callback, another server answers there, or --address is another Caddy: check the matcher, and that the directive stands before the app": {
		id: "path ini tidak melewati iak_callback, server lain yang menjawab di sana, atau --address adalah Caddy lain: periksa matcher, dan apakah directive berdiri di depan aplikasi"},
	"whoever posts there gets around iak_callback: let the matcher cover this path too, with a * at its end and behind /index.php, as in @callback path /iak/callback* /index.php/iak/callback*; see \"Let nothing get around it\" in docs/configuration.md": {
		id: "siapa pun yang POST ke sana tidak melewati iak_callback: buat matcher mencakup path ini juga, dengan * di akhir dan di belakang /index.php, seperti @callback path /iak/callback* /index.php/iak/callback*; lihat \"Let nothing get around it\" di docs/configuration.md"},
	"the app itself has answered, as it does on a path that nobody has. Look into its log: if its callback code ran, this path is open, and the matcher must cover it too": {
		id: "aplikasi sendiri yang menjawab, sama seperti di path yang tidak dimiliki siapa pun. Lihat log aplikasi: jika kode callback-nya berjalan, path ini terbuka, dan matcher harus mencakupnya juga"},
	"whoever reaches the app at its own port gets around iak_callback: let the app listen on 127.0.0.1 alone, or close the port in the firewall": {
		id: "siapa pun yang mencapai aplikasi lewat port-nya sendiri tidak melewati iak_callback: buat aplikasi mendengarkan di 127.0.0.1 saja, atau tutup port itu di firewall"},
	"that port speaks https: write https:// in --to": {id: "port itu memakai https: tulis https:// di --to"},
	"iak_callback answers 405 to a GET: something else answers here, a directive in front of it, or handle_errors with another status": {
		id: "iak_callback menjawab 405 untuk GET; yang menjawab di sini sesuatu yang lain: directive di depannya, atau handle_errors dengan status lain"},

	// show: what stands beside a record's facts.
	"not until it is settled":           {id: "tidak, sampai diselesaikan"},
	"not as long as a callback is kept": {id: "tidak, selama callback disimpan"},
	"the file for callbacks that come while Redis does not answer: it is handed in when Redis is back": {
		id: "file untuk callback yang datang selama Redis tidak menjawab: diserahkan ketika Redis kembali"},
	"not by itself any more: mend what is wrong, then redeliver or forget it": {
		id: "tidak otomatis lagi: perbaiki yang salah, lalu redeliver atau forget"},
	"not by itself: accept, release or redeliver it": {id: "tidak otomatis: accept, release, atau redeliver"},
	"no route of this Caddy leads to an iak_callback with a spool and this account: it waits for one": {
		id: "tidak ada rute di Caddy ini yang menuju iak_callback dengan spool dan akun ini: menunggu sampai ada"},
	"IAK has not confirmed it yet: nothing was sent to the app": {id: "IAK belum mengonfirmasinya: tidak ada yang dikirim ke aplikasi"},
	"nothing reached the app":                                   {id: "tidak ada yang sampai ke aplikasi"},
	"no whole answer came in time, or Caddy died: the app may have acted": {
		id: "tidak ada jawaban utuh pada waktunya, atau Caddy mati: aplikasi mungkin sudah bertindak"},
	"no answer of the app was seen: a handler refused, or panicked": {
		id: "jawaban aplikasi tidak terlihat: sebuah handler menolak, atau panic"},
	"the app answered, but accept_when does not hold": {id: "aplikasi menjawab, tetapi accept_when tidak terpenuhi"},
	"the app refused": {id: "aplikasi menolak"},

	// ask --deliver: what became of it.
	"the app has accepted it":                        {id: "aplikasi sudah menerimanya"},
	"the app had accepted it before":                 {id: "aplikasi sudah menerimanya sebelumnya"},
	"the app had accepted newer news before":         {id: "aplikasi sudah menerima kabar yang lebih baru"},
	"it is kept, and delivered to the app by itself": {id: "disimpan, dan diantar ke aplikasi secara otomatis"},
	"the app did not answer, and on_doubt accept takes it for accepted": {
		id: "aplikasi tidak menjawab, dan on_doubt accept menganggapnya diterima"},
}
